# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of, from its settings: data, tokenizers, model, optimiser, averaged weights."""

import contextlib
import copy
import ctypes
import os
import time
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla import checkpoint, processes
from vla.canvas import Segment
from vla.canvas.query import waypoint_steps
from vla.data.batches import Batches, chosen_episodes, split_episodes
from vla.data.cache import FrameCache, open_cache
from vla.data.lerobot_files import LeRobotFiles
from vla.data.mixture import join
from vla.model import LatticeModel, ModelConfig
from vla.policy import Policy
from vla.recipes import Recipe
from vla.tokenizers import (
    BinTokenizer,
    ImageTokenizer,
    StateScaler,
    TextTokenizer,
    Tokenizers,
    WordNumerals,
    build_action_tokenizer,
    neighbour_counts,
)
from vla.tokenizers.text import SPARE
from vla.train.parallel import Within, replicate, shard
from vla.train.queries import trained_queries
from vla.train.session import Session


def steps_to_come(recipe: Recipe) -> tuple[int, ...]:
    """The moments to come of which a recipe learns the robot's state; () where it learns nothing about them."""
    return waypoint_steps(recipe.horizon) if recipe.queries.states or recipe.forecast else ()


def fit_tokenizers(
    recipe: Recipe, data: FrameCache | LeRobotFiles, action_free: np.ndarray | None = None
) -> Tokenizers:
    """Limits, names and words of a dataset, over all its frames; of actions but for the episodes `action_free`."""
    names, state_names = list(data.action_names), list(data.state_names)
    action = build_action_tokenizer(
        recipe.actions,
        *_actions(data, action_free),
        names,
        recipe.horizon,
        recipe.digits,
        recipe.base,
    )
    if recipe.stop:
        if not isinstance(action, BinTokenizer):
            raise ValueError(
                f"stop=true needs actions=bins, whose tokens are aligned with time, not '{recipe.actions}'"
            )
        action.stops = True
    queries, plans = recipe.queries, list(getattr(data, "plans", ()))
    sentences = [*data.tasks, *plans] if queries.plans else data.tasks
    text = TextTokenizer.train(sentences, recipe.vocabulary)
    text.length = text.longest(data.tasks) + SPARE
    words = WordNumerals.fit(neighbour_counts([text.ids(s) for s in sentences], text.vocabulary + 1))
    image = ImageTokenizer.load(checkpoint.resolve(queries.image_tokenizer)) if queries.image_tokenizer else None
    waypoints = BinTokenizer.of_states(data.state, state_names) if queries.states else None
    return Tokenizers(action, StateScaler.fit(data.state, state_names), text, words, image, waypoints)


def _actions(
    data: FrameCache | LeRobotFiles, action_free: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The actions that there are, float32 (N, A), and where each episode begins and ends. ValueError for none."""
    if action_free is None:
        return data.action, data.episode_from, data.episode_to
    known = np.setdiff1d(np.arange(len(data.episode_from)), action_free)
    if not len(known):
        raise ValueError(f"all {len(data.episode_from)} episodes are action_free: there are no actions to learn from")
    length = (data.episode_to - data.episode_from)[known]
    rows = np.concatenate([np.arange(data.episode_from[e], data.episode_to[e]) for e in known])
    return data.action[rows], np.cumsum(length) - length, np.cumsum(length)


def network(recipe: Recipe, tokenizers: Tokenizers, cameras: Iterable[str], plans: bool = False) -> ModelConfig:
    """The network of a recipe for the data that the tokenizers were fitted to. `plans`: whether the data have any."""
    image = tokenizers.image
    if image is not None and image.image_size != recipe.image_size:
        raise ValueError(
            f"the image tokenizer is for pictures of {image.image_size} px and the recipe for {recipe.image_size}: "
            "train one with vla train-tokenizer image, or set image_size"
        )
    positions, sub_tokens = tokenizers.action.grid(recipe.horizon)
    queries = recipe.queries
    return ModelConfig(
        cameras=tuple(cameras),
        image_size=recipe.image_size,
        n_obs_steps=recipe.n_obs_steps,
        state_dim=len(tokenizers.state.names),
        executed_dim=len(tokenizers.action.names),
        word_radices=tokenizers.words.numerals.radices,
        text_length=tokenizers.text.length,
        action_dims=sub_tokens,
        horizon=positions,
        digits=tokenizers.action.digits,
        base=recipe.base,
        arrangement=recipe.arrangement,
        noise_indices=recipe.noise_indices,
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        key_heads=recipe.key_heads,
        qk_norm=recipe.qk_norm,
        vision=recipe.vision,
        shared_vision=recipe.shared_vision,
        background=recipe.background,
        plan_length=queries.plan_length if plans and queries.plans else 0,
        waypoints=len(steps_to_come(recipe)) if queries.states else 0,
        forecast=len(steps_to_come(recipe)) if recipe.forecast and tuple(cameras) else 0,
        code_radices=image.numerals.radices if image is not None else (),
        codes=image.positions if image is not None else 0,
        goals=queries.goal_policy + queries.label > 0,
        given_actions=queries.world_model + queries.label > 0,
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed instead of giving it back to the kernel.

    A CPU training step allocates and frees the same 16 MB feature maps over and over; each time the kernel hands out
    fresh zeroed pages, which cost a quarter of the step (measured). No effect where there is no glibc.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def build(
    config: Any,
    recipe: Recipe,
    device: torch.device | None = None,
    begin: tuple[LatticeModel, Tokenizers] | None = None,
) -> Session:
    """Open the dataset, fit the tokenizers, make the model. `config`: a TrainConfig. `begin`: a model and its
    tokenizers to begin with instead; what of it has no gradient stays as it is.

    Raises ValueError for batches that the processes cannot share, and for future images without an image tokenizer.
    """
    if device is None:
        with processes.together(config.device) as device:  # one process: what the name says
            pass
    keep_freed_memory()
    torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // processes.here()))
    names = (config.dataset,) if isinstance(config.dataset, str) else config.dataset
    with processes.one_after_the_other():
        cache = join([open_cache(name, image_size=recipe.image_size) for name in names])
    train_episodes, val_episodes = split_episodes(cache, recipe.holdout, config.seed, config.episodes)
    films = chosen_episodes(config.action_free, len(cache.episode_from)) if config.action_free else None
    batches = Batches(
        cache,
        recipe.horizon,
        recipe.batch_size,
        config.seed,
        train_episodes,
        config.weights,
        moments=recipe.n_obs_steps,
        plans=recipe.queries.plans,
        future=recipe.queries.pictures,
        waypoints=steps_to_come(recipe),
        action_free=films,
        part=(processes.rank(), processes.world()),
    )
    model, tokenizers = begin or _new(recipe, cache, config.seed, films)
    model = model.to(device)
    averaged = copy.deepcopy(model).requires_grad_(False)
    model.checkpointing = recipe.checkpointing
    if recipe.compile:  # what training calls; the averaged weights, which are saved and act, stay plain
        for part in (*model.layers, *model.vision.values()):
            part.compile()
    within, sharded = Within(model), False
    if processes.world() > 1:
        sharded = config.parallel == "fsdp"
        within = shard(model, device) if sharded else replicate(model, device)  # type: ignore
        if sharded:
            shard(averaged, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Session(
        recipe=recipe,
        seed=config.seed,
        device=device,
        precision=pick_precision(recipe.precision, device),
        cache=cache,
        train_episodes=train_episodes,
        val_episodes=val_episodes,
        batches=batches,
        tokenizers=tokenizers,
        words_TL=torch.from_numpy(tokenizers.text.encode(cache.tasks)),
        plans_TL=_plans(tokenizers, cache.plans, model.config.plan_length),
        trained=trained_queries(recipe, tokenizers, bool(model.config.plan_length), bool(cache.cameras)),
        model=model,
        averaged=averaged,
        optimiser=torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True),
        within=within,
        sharded=sharded,
    )


def started(config: Any, recipe: Recipe, device: torch.device | None = None) -> Session:
    """As `build`, with the weights and tokenizers of the checkpoint `config.init`.

    ValueError if the recipe's network is another one, or the dataset's names are.
    """
    policy = Policy.load(config.init)
    session = build(config, recipe, device, (policy.model.train(), policy.tokenizers))
    policy.check_names(session.cache)
    wanted = network(recipe, policy.tokenizers, session.cache.cameras, bool(session.cache.plans))
    if wanted != policy.model.config:
        theirs = policy.model.config
        differs = [f.name for f in fields(wanted) if getattr(wanted, f.name) != getattr(theirs, f.name)]
        raise ValueError(
            f"the checkpoint '{config.init}' is of another network than the recipe '{config.recipe}' ({differs}): "
            "name the recipe and the --set that it was trained with"
        )
    return session


def _new(
    recipe: Recipe, cache: FrameCache, seed: int, action_free: np.ndarray | None
) -> tuple[LatticeModel, Tokenizers]:
    """A network that knows nothing but the dataset's limits, names, words and mean picture."""
    tokenizers = fit_tokenizers(recipe, cache, action_free)
    model_config = network(recipe, tokenizers, cache.cameras, bool(cache.plans))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatticeModel(model_config)
    model.head_of(Segment.ACTION).allowed_ADV.copy_(tokenizers.action.allowed_ADV())
    if recipe.background:
        some = np.linspace(0, len(cache) - 1, min(len(cache), 2000)).astype(np.int64)
        for camera in cache.cameras:
            model.eye(camera).fit_background(torch.from_numpy(cache.frames[camera][some]))
    return model, tokenizers


def _plans(tokenizers: Tokenizers, plans: list[str], length: int) -> Tensor:
    """int64 (plans, length): their words, 0 behind the end. ValueError for a plan that does not fit."""
    ids = torch.zeros(max(len(plans), 1), max(length, 1), dtype=torch.long)
    for row, plan in enumerate(plans if length else []):
        words = tokenizers.text.ids(plan)
        if len(words) > length:
            raise ValueError(
                f"the plan {plan!r} has {len(words)} words and there is room for {length}: set queries.plan_length"
            )
        ids[row, : len(words)] = torch.tensor(words, dtype=torch.long)
    return ids


def pick_precision(wanted: str, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu
    return "bfloat16" if fast else "float32"


def fit_steps(steps: int, seconds: float, minutes: float, began: float, step: int, limit: int) -> int:
    """How many steps fit into `minutes` of wall-clock since `began`, at the measured rate; never more than `limit`."""
    left_s = minutes * 60 - (time.perf_counter() - began)
    return max(step + 1, min(limit, step + int(0.98 * left_s * steps / seconds)))
