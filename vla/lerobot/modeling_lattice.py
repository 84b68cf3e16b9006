# SPDX-License-Identifier: Apache-2.0
"""LeRobot's policy of type `lattice`: our network, objective and sampler behind LeRobot's methods.

Actions come and go in the dataset's units. Acting is done with the averaged weights, which `update()` keeps: LeRobot
calls it after each step of the optimiser. Masks and noise are a function of (seed, step, process, place in the batch),
and the step is saved with the weights, so that a resumed training goes on as it would have.

Shapes: B batch, H horizon, A action dimensions, S state values, C channels.
"""

import contextlib
import copy
import json
import warnings
from collections import deque
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file
from torch import Tensor

from vla import randomness
from vla.data.lerobot_files import read_tables
from vla.lerobot.configuration_lattice import LatticeConfig
from vla.model import LatticeModel, ModelConfig
from vla.policy import Observation, Policy
from vla.tokenizers import Tokenizers
from vla.tokenizers.text import SPARE
from vla.train.augment import harder
from vla.train.session import objective
from vla.train.setup import fit_tokenizers, network, pick_precision

DAMAGE = 0.05
"""Fraction of action values beyond the dataset's stored quantiles from which on we warn; 0.02 are to be expected."""


def camera_of(feature: str) -> str:
    """ "observation.images.front" -> "front", as `vla.data` names cameras."""
    return feature.removeprefix("observation.").removeprefix("images.")


class LatticePolicy(PreTrainedPolicy):
    """See the module docstring."""

    config_class = LatticeConfig  # type: ignore[assignment]
    name = "lattice"  # type: ignore[assignment]
    config: LatticeConfig

    def __init__(self, config: LatticeConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any) -> None:
        """`dataset_meta`: of the dataset to learn from, needed unless `config.fitted` says what an earlier one decided.

        ValueError without either, or for a dataset with another number of actions or state values than the checkpoint.
        """
        super().__init__(config)
        config.validate_features()
        if not config.fitted:
            config.fitted = fit(config, dataset_stats, dataset_meta)
        elif dataset_meta is not None:
            config.fitted = with_room(config.fitted, dataset_meta)
        about = json.loads(config.fitted)
        model = ModelConfig(**{**about["model"], "cameras": tuple(about["model"]["cameras"])})
        if model.unified:
            raise ValueError(
                "LeRobot's commands know actions alone, and this recipe or checkpoint has queries, of which an image "
                "tokenizer is a part: choose a recipe without, or use vla train and vla eval"
            )
        self.tokenizers, self.fps = Tokenizers.from_dict(about["tokenizers"]), float(about["fps"])
        self._check_sizes()
        self.recipe = config.values()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = LatticeModel(model)
        self.model.head.allowed_ADV.copy_(self.tokenizers.action.allowed_ADV())
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._features = {camera_of(key): key for key in config.image_features}
        missing = [camera for camera in model.cameras if camera not in self._features]
        if missing:
            raise ValueError(f"the checkpoint needs the cameras {list(model.cameras)}; missing: {missing}")
        sampling = self.recipe.sampling
        if config.evaluations:
            sampling = replace(sampling, evaluations=config.evaluations)
        steps = config.n_action_steps or self.recipe.n_action_steps
        self.acting = Policy(self.averaged, self.tokenizers, self.fps, sampling, steps, config.seed)
        """The policy of this project that acts with the averaged weights."""
        self._episode = -1
        self.reset()

    # --- learning -----------------------------------------------------------------------------------------------
    def get_optim_params(self) -> Any:
        """Weight decay for matrices, none for vectors, as `vla train`."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of LeRobot's loader, and its parts. In evaluation mode: of the averaged weights."""
        actions_BHA, pad_BH = batch[ACTION], batch["action_is_pad"]
        model, step = (self.model, int(self.step)) if self.training else (self.averaged, -1)
        place_B = torch.arange(len(actions_BHA), device=actions_BHA.device) + _rank() * len(actions_BHA)
        key_B = randomness.fold(self.config.seed, step, place_B)
        images, state_BS = self._images(batch), self.tokenizers.state(batch[OBS_STATE])
        if self.training:
            images, state_BS = harder(images, state_BS, key_B, self.recipe)
        with self._autocast(actions_BHA.device):
            prefix = model.encode(images, state_BS, self._words(batch))
            parts = objective(model, prefix, self.tokenizers, self.recipe, actions_BHA, pad_BH, key_B, step)
        return parts["loss"], {name: value.item() for name, value in parts.items() if name != "loss"}

    @torch.no_grad()
    def update(self) -> None:
        """Called after each step of the optimiser: average the weights, count the step."""
        decay = min(self.recipe.ema, (1 + int(self.step)) / (10 + int(self.step)))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1

    def _get_default_peft_targets(self) -> dict[str, Any]:
        return {"target_modules": r"model\.blocks\.\d+\.(qkv|proj|up|down)", "modules_to_save": []}

    # --- acting -------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """A new episode begins."""
        self._queue: deque[Tensor] = deque()
        self._episode += 1
        self._time = 0

    def supports_rtc(self) -> bool:
        """Committed actions are in-painted, if the action tokenizer is aligned with time."""
        return self.tokenizers.action.time_aligned

    @torch.inference_mode()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """float32 (B, H, A), dataset units.

        `prev_chunk_left_over`: (T, A) or (B, T, A), what is left of the last chunk; its first `inference_delay` actions
        are on their way and are kept as they are. What LeRobot pads it with (zeros at its end) is not data.
        """
        images = {c: x.cpu().numpy() for c, x in self._images(batch).items()}
        state_BS, sentences = batch[OBS_STATE].float().cpu().numpy(), self._sentences(batch)
        observations = [
            Observation({c: x[row] for c, x in images.items()}, state_BS[row], sentences[row])
            for row in range(len(state_BS))
        ]
        keys = [(int(randomness.fold(self._episode, row)), self._time) for row in range(len(observations))]
        committed = self._committed(prev_chunk_left_over, inference_delay or 0, len(observations))
        chunk = self.acting.decide(observations, keys, committed)
        return torch.from_numpy(chunk.actions_BHA).to(batch[OBS_STATE].device)

    @torch.inference_mode()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """float32 (B, A): the next action; a new chunk is decided when the last one's part has been executed."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.acting.n_action_steps].unbind(1))
        self._time += 1
        return self._queue.popleft()

    # --- inside -------------------------------------------------------------------------------------------------
    def _committed(self, left: Tensor | None, delay: int, rows: int) -> list[np.ndarray] | None:
        if left is None or delay < 1:
            return None
        left_BTA = (left if left.ndim == 3 else left.unsqueeze(0)).float().cpu().numpy()
        if left_BTA.shape[0] not in (1, rows):
            raise ValueError(f"expected the left-over actions of {rows} observations, got {left_BTA.shape[0]}")
        given = []
        for row in range(rows):
            actions_TA = left_BTA[row % len(left_BTA)]
            data = np.flatnonzero(actions_TA.any(axis=1))
            real = int(data[-1]) + 1 if len(data) else 0
            given.append(actions_TA[: min(delay, real, self.config.chunk_size)])
        return given

    def _images(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """uint8 (B, size, size, 3) a camera, from float 0..1 or uint8 (B, 3, H, W)."""
        images, size = {}, self.model.config.image_size
        for camera in self.model.config.cameras:
            key = self._features[camera]
            if key not in batch:
                raise ValueError(f"the policy needs '{key}'; the batch has {sorted(k for k in batch if 'image' in k)}")
            x_BCHW = batch[key]
            if x_BCHW.ndim == 5:  # one observation step
                x_BCHW = x_BCHW[:, -1]
            if x_BCHW.shape[-2:] != (size, size):
                shrink = min(x_BCHW.shape[-2:]) >= size
                how: dict[str, Any] = {"mode": "area"} if shrink else {"mode": "bicubic", "align_corners": False}
                scale = 255 if x_BCHW.dtype == torch.uint8 else 1
                x_BCHW = F.interpolate(x_BCHW.float() / scale, (size, size), **how).clamp(0, 1)
            if x_BCHW.dtype != torch.uint8:
                x_BCHW = (x_BCHW * 255).round().to(torch.uint8)
            images[camera] = x_BCHW.permute(0, 2, 3, 1).contiguous()
        return images

    def _sentences(self, batch: dict[str, Any]) -> list[str]:
        task, rows = batch.get("task"), len(batch[OBS_STATE])
        sentences = [task] * rows if isinstance(task, str) else list(task or [])
        if len(sentences) != rows or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise ValueError(
                f"policy type lattice needs an instruction for each of {rows} rows in batch['task'], got {task!r}; "
                "give the dataset a task, or the rollout --task"
            )
        return sentences

    def _words(self, batch: dict[str, Any]) -> Tensor:
        return torch.from_numpy(self.tokenizers.text.encode(self._sentences(batch))).to(batch[OBS_STATE].device)

    def _check_sizes(self) -> None:
        there = {**(self.config.input_features or {}), **(self.config.output_features or {})}
        for key, names in ((ACTION, self.tokenizers.action.names), (OBS_STATE, self.tokenizers.state.names)):
            size = there[key].shape[0] if key in there else 0
            if size != len(names):
                raise ValueError(
                    f"the checkpoint has {len(names)} values of '{key}' ({', '.join(names)}), the dataset or "
                    f"environment has {size}; train a new policy, or use the robot it was made for"
                )

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if torch.is_autocast_enabled(device.type) or pick_precision(self.recipe.precision, device) != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        # Strict: LeRobot would only log what is missing, and a policy with some of its weights acts, and acts badly.
        # Places for the words of longer sentences are new, and hidden from every sentence that the checkpoint knows.
        tensors = load_file(model_file)
        for name, own in model.state_dict().items():
            known = len(tensors[name]) if name in tensors and name.endswith(("word_place", "prefix_place")) else None
            if known is not None and known < len(own):
                tensors[name] = torch.cat([tensors[name], own[known:].cpu()])
        model.load_state_dict(tensors)
        return model


def fit(config: LatticeConfig, stats: Any, meta: Any) -> str:
    """`config.fitted` for a dataset: names, limits over all frames, words, sizes of the network.

    Warns if the stored quantiles of the actions, which other policies may normalise with, leave out part of them.
    """
    if meta is None:
        raise ValueError(
            "a policy of type lattice is made from a dataset: train it with lerobot-train, or load a checkpoint with "
            "LatticePolicy.from_pretrained(folder)"
        )
    recipe = config.values()
    if recipe.background:
        raise ValueError(
            f"the recipe '{config.recipe}' looks at all pictures before it trains, which lerobot-train does not offer: "
            "train it with vla train and convert the checkpoint with vla convert, or add the override background=false"
        )
    tables = read_tables(Path(meta.root))
    tokenizers = fit_tokenizers(recipe, tables)
    cameras = [camera_of(key) for key in config.image_features]
    model = network(recipe, tokenizers, cameras)
    if stats and "q01" in stats.get(ACTION, {}):
        low, high = (np.asarray(stats[ACTION][q], np.float64) for q in ("q01", "q99"))
        outside = float(((tables.action < low) | (tables.action > high)).mean())
        if outside > DAMAGE:
            warnings.warn(
                f"{100 * outside:.0f} % of the action values lie beyond the quantiles q01 and q99 that the dataset "
                "stores (2 % should): LeRobot 0.6.1 averages them over episodes. Policy type lattice has its own "
                "limits, over all frames; policies that normalise by QUANTILES are harmed.",
                stacklevel=2,
            )
    return fitted(model, tokenizers, float(meta.fps))


def with_room(content: str, meta: Any) -> str:
    """The content of `config.fitted`, for sentences as long as those of another dataset."""
    about, tables = json.loads(content), read_tables(Path(meta.root))
    longest = Tokenizers.from_dict(about["tokenizers"]).text.longest(tables.tasks)
    if longest > about["model"]["text_length"]:
        about["model"]["text_length"] = about["tokenizers"]["text"]["length"] = longest + SPARE
    return json.dumps(about)


def fitted(model: ModelConfig, tokenizers: Tokenizers, fps: float) -> str:
    """The content of `config.fitted`."""
    sizes = {f.name: getattr(model, f.name) for f in fields(ModelConfig) if f.init}
    return json.dumps({"model": sizes, "tokenizers": tokenizers.to_dict(), "fps": fps})


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
