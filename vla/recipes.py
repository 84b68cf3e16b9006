# SPDX-License-Identifier: Apache-2.0
"""Named configurations. A recipe is one frozen dataclass; its function's docstring says what it should reach, in what
time, on which machine. Dotted overrides (`--set corruption.p_full_mask=0.3 width=192`) change single values."""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from vla.canvas import Segment
from vla.canvas.query import QUERIES
from vla.canvas.segments import ActionArrangement
from vla.diffusion import CorruptionConfig, Sampling


@dataclass(frozen=True)
class Queries:
    """Which queries a network learns to answer (vla/canvas/query.py): of each, the fraction of a batch that is asked;
    0: it does not. Fractions may add up to more than 1: several queries are then asked about the same rows.

    The checkpoint carries the list, and refuses to answer others.
    """

    policy: float = 1.0
    continuation: float = 0.5
    """The rest of a chunk whose beginning is being executed (real-time chunking); needs time-aligned action tokens."""
    infill: float = 0.0
    plan: float = 0.0
    plan_policy: float = 0.0
    waypoints: float = 0.0
    waypoint_policy: float = 0.0
    world_model: float = 0.0
    inverse: float = 0.0
    goal_policy: float = 0.0
    label: float = 0.0
    joint: float = 0.0
    untold: float = 0.4
    """Fraction of the batch that hears no instruction, if there are queries without one."""
    draw: bool = False
    """Of many queries a step draws a few by their weights, and asks them about more rows: less overhead."""
    policy_warmup_steps: int = 0
    """Steps at the beginning in which the policy alone is learnt: many queries at once, of which some are easy, keep
    the vision from finding out what the hard ones are about (LOG.md, 2026-11-26)."""
    image_tokenizer: str = ""
    """Folder of `vla train-tokenizer image`, or the name of a shipped one; "": there are no future images."""
    plan_length: int = 24
    """Most words of a plan, for datasets that have plans."""
    image_weight: float = 0.2
    """Of the loss of image codes; that of actions is 1."""
    text_weight: float = 0.5
    """Of the loss of words."""
    waypoint_weight: float = 0.5
    """Of the loss of waypoints."""

    def weights(self) -> dict[str, float]:
        """{query: its fraction of a batch}."""
        return {name: getattr(self, name) for name in QUERIES}

    def weight_of(self, segment: Segment) -> float:
        """Of the loss of a segment's tokens."""
        if segment in (Segment.INSTRUCTION, Segment.PLAN):
            return self.text_weight
        return {Segment.FUTURE_IMAGE: self.image_weight, Segment.WAYPOINTS: self.waypoint_weight}.get(segment, 1.0)

    @property
    def plans(self) -> bool:
        """Whether plans are asked for, or given."""
        return self.plan + self.plan_policy + self.joint > 0

    @property
    def pictures(self) -> bool:
        """Whether later pictures are asked for, or given."""
        return self.world_model + self.inverse + self.goal_policy + self.label + self.joint > 0

    @property
    def states(self) -> bool:
        """Whether robot states to come are asked for, or given."""
        return self.waypoints + self.waypoint_policy > 0

    def __post_init__(self) -> None:
        weights = self.weights()
        if min(weights.values()) < 0 or not sum(weights.values()):
            raise ValueError(f"expected weights of queries >= 0, not all of them 0, got {weights}")
        if self.world_model + self.inverse and not self.image_tokenizer:
            raise ValueError(
                "the queries world_model and inverse need the codes of future images, and there is no "
                "queries.image_tokenizer: name one (vla train-tokenizer image), or set their weights to 0"
            )


@dataclass(frozen=True)
class Recipe:
    """How to train one policy. Names, dimensions and vocabulary are discovered from the dataset."""

    # --- network ---
    image_size: int = 64
    """Side of the input images, px; the cache is built at this size."""
    horizon: int = 8
    """Steps of an action chunk."""
    n_action_steps: int = 4
    """Steps executed before the next observation."""
    actions: Literal["bins", "dct", "rvq"] = "bins"
    """Action tokenizer. Only the time-aligned `bins` can commit the first actions of a chunk (real-time chunking)."""
    digits: int = 2
    """Of a token; `rvq` has at least 4."""
    base: int = 16
    arrangement: ActionArrangement = "per_step"
    stop: bool = False
    """Each step of a chunk has a token that says whether the episode is over (`bins` only)."""
    noise_indices: int = 1
    """How many interchangeable masks there are; 1: one."""
    noise_candidates: int = 8
    """Noise indices that training looks at, to learn from the one that explains the sample best; 1: the one drawn."""
    n_obs_steps: int = 1
    """Moments that an observation has: pictures, state, and the actions executed between them."""
    width: int = 128
    layers: int = 2
    heads: int = 4
    key_heads: int = 0
    """Heads of keys and values (grouped-query attention); 0: as many as heads."""
    qk_norm: bool = False
    vision: str = "keypoints"
    shared_vision: bool = False
    """One vision for all cameras; False: each has its own."""
    background: bool = False
    """The vision also sees how the picture differs from the dataset's mean: for cameras that stand still."""
    vocabulary: int = 512
    """Upper limit of the instruction BPE."""
    # --- diffusion ---
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    forecast: float = 2.0
    """Weight of a training aid: where the robot will be, read off the pictures by one linear map; 0: none. The loss of
    masked actions alone teaches the vision late what the words are about (LOG.md, 2026-11-28)."""
    full_steps: int = 1000
    """The first steps see no partial masks: tokens that can be guessed from their neighbours keep the network from
    looking at the picture (LOG.md)."""
    sampling: Sampling = field(default_factory=Sampling)
    queries: Queries = field(default_factory=Queries)
    # --- optimisation ---
    steps: int = 5000
    batch_size: int = 64
    lr: float = 2e-3
    """Peak of a cosine schedule with linear warm-up, AdamW."""
    warmup: int = 100
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    """Global gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that act."""
    accumulate: int = 1
    """Parts in which a batch is computed, one after the other, where it does not fit into memory at once."""
    checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, a third more time."""
    compile: bool = False
    """Compile the network for training (needs a C++ compiler on a CPU; pays on a GPU)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the hardware multiplies it natively (AMX, CUDA), float32 elsewhere."""
    # --- data ---
    shift: int = 0
    """Training pictures are moved by up to this many pixels: for when there are few demonstrations."""
    light: float = 0.0
    """Their contrast and brightness change by up to this fraction."""
    drop_state: float = 0.0
    """Of the training samples, how many do not see the robot's state, so that the picture is looked at."""
    drop_images: float = 0.1
    """Of those that hear no instruction, how many do not see the pictures, so that what else is given is heard."""
    holdout: float = 0.02
    """Fraction of episodes kept for validation."""

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"expected accumulate to divide the batch of {self.batch_size}, got {self.accumulate}")


def tabletop_nano() -> Recipe:
    """The tabletop on two CPU cores: 0.8 M parameters, 64 px, chunks of 16 steps of which 4 are executed.

    Its figures are in vla/checkpoints/tabletop_nano/README.md, and in benchmarks/results/demo.json for `vla demo`.
    """
    return Recipe(horizon=16)


def tabletop_state() -> Recipe:
    """The tabletop from its state instead of pixels (environment `tabletop_state`): for ablations of the lattice."""
    return Recipe(width=64, steps=2000, full_steps=0, drop_images=0)


def metaworld_mt10_small() -> Recipe:
    """The ten tasks of Meta-World's MT10 in one network, on two CPU cores, from 50 demonstrations a task at 96 px."""
    queries = Queries(policy=1.0, continuation=0.25, waypoints=0.5)
    return Recipe(image_size=96, layers=3, drop_state=0.5, steps=100_000, background=True, queries=queries)


def metaworld_mt50_base() -> Recipe:
    """All fifty tasks of Meta-World in one network, on one GPU, from 50 demonstrations a task at 96 px.

    `vla reproduce metaworld_mt50_base`. Not yet run at full size.
    """
    return Recipe(
        image_size=96,
        width=512,
        layers=8,
        heads=8,
        shift=4,
        light=0.1,
        batch_size=256,
        lr=5e-4,
        steps=200_000,
        compile=True,
    )


def base() -> Recipe:
    """About 0.1 B parameters: cameras of 224 px with patch tokens, chunks of 50 steps, two moments. Not yet trained."""
    return Recipe(
        image_size=224,
        horizon=50,
        n_action_steps=25,
        n_obs_steps=2,
        width=768,
        layers=12,
        heads=12,
        key_heads=4,
        qk_norm=True,
        vision="timm:vit_small_patch16_224",
        shared_vision=True,
        batch_size=256,
        lr=3e-4,
        warmup=2000,
        steps=200_000,
        full_steps=0,
        compile=True,
    )


def large() -> Recipe:
    """About 0.5 B parameters: as `base`, wider and deeper, with a larger vision. Not yet trained."""
    return dataclasses.replace(
        base(), width=1280, layers=24, heads=20, key_heads=5, vision="timm:vit_base_patch16_224", checkpointing=True
    )


def tabletop_unified() -> Recipe:
    """Every query from one network: plans, waypoints, pictures, goals, dynamics, labels (`benchmarks/heard.py`)."""
    queries = Queries(
        policy=0.6,
        continuation=0.25,
        infill=0.25,
        plan=0.15,
        plan_policy=0.2,
        waypoints=0.3,
        waypoint_policy=0.05,
        world_model=0.2,
        inverse=0.2,
        goal_policy=0.1,
        label=0.2,
        draw=True,
        policy_warmup_steps=600,
        image_tokenizer="tabletop_image",
    )
    return Recipe(holdout=0.05, layers=3, drop_state=0.1, queries=queries)


def tabletop_test() -> Recipe:
    """Seconds instead of minutes, learns nothing: for tests that run the real commands."""
    return Recipe(
        image_size=32, width=32, layers=1, heads=2, steps=8, full_steps=4, batch_size=8, warmup=2, holdout=0.2
    )


RECIPES = {
    f.__name__: f
    for f in (
        tabletop_nano,
        tabletop_unified,
        tabletop_state,
        metaworld_mt10_small,
        metaworld_mt50_base,
        base,
        large,
        tabletop_test,
    )
}


def get(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe `name` with dotted overrides "key=value". ValueError names the nearest key or recipe."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe '{name}'{_nearest(name, RECIPES)}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]()
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"expected an override as key=value, got '{override}'")
        recipe = _replace(recipe, key.split("."), value, override)
    return recipe


def _replace(target: Any, path: list[str], value: str, override: str) -> Any:
    names = [f.name for f in dataclasses.fields(target)]
    if path[0] not in names:
        raise ValueError(f"unknown key in '{override}'{_nearest(path[0], names)}; there are: {', '.join(names)}")
    current = getattr(target, path[0])
    if len(path) > 1:
        new = _replace(current, path[1:], value, override)
    elif isinstance(current, str):
        new = value
    else:
        try:
            new = type(current)(json.loads(value))
        except ValueError as error:
            raise ValueError(f"'{override}': expected a {type(current).__name__}, got '{value}'") from error
    return dataclasses.replace(target, **{path[0]: new})


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data for config files."""
    return dataclasses.asdict(recipe)
