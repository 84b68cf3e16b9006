# SPDX-License-Identifier: Apache-2.0
"""Named configurations. A recipe is one frozen dataclass; its function's docstring says what it should reach, in what
time, on which machine. Dotted overrides (`--set programs.full=0.3 width=192`) change single values."""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from vla.canvas.layout import ActionArrangement
from vla.diffusion import Programs, Sampling


@dataclass(frozen=True)
class Queries:
    """Which questions a network learns to answer beside that of the policy (vla/canvas/query.py), and how often.

    At every step the policy is asked about the whole batch; a part of it is also asked for plan, future image and
    actions together, with the prefix of the policy; and a part of it four queries without an instruction, which share
    what the vision makes of the pictures.
    """

    joint: float = 0.0
    """Of the batch, that is asked for plan, future image and actions together."""
    share: float = 0.0
    """Of the batch, that is asked the following. Both 0: the network is a policy and nothing else."""
    after: int = 500
    """Steps at the beginning in which the policy alone is learnt: many questions at once, of which some are easy, keep
    the vision from finding out what the hard ones are about (LOG.md, 2026-11-26)."""
    world_model: float = 0.5
    """Weight of a query's loss; 0: it is not asked."""
    inverse: float = 1.0
    goal_policy: float = 0.5
    label: float = 1.0
    policy: float = 1.0
    image_tokenizer: str = ""
    """Folder of `vla train-tokenizer image`, or the name of a shipped one; "": no future image is asked for."""
    plan_length: int = 24
    """Most words of a plan, for datasets that have plans."""
    state: float = 1.0
    """Weight of reading the robot's state off pictures, about which nothing is said: it shows the vision where to look
    long before the actions do."""
    image_weight: float = 0.2
    """Of the loss of image codes; that of actions is 1."""
    text_weight: float = 1.0
    """Of the loss of words."""
    waypoints: float = 0.0
    """Weight of acting on waypoints (`Policy`, decoding "waypoints"): actions of who sees nothing but the robot's state
    and where it will be; 0: it is not learnt. It needs `ahead`, which tells where that is and needs no actions."""

    @property
    def any(self) -> bool:
        """Whether other segments are asked for, or given, than the policy's."""
        return self.joint + self.share > 0

    @property
    def more(self) -> bool:
        """Whether there is more than the policy to learn."""
        return self.any or self.waypoints > 0

    def weights(self) -> dict[str, float]:
        """Of the queries without an instruction."""
        return {name: getattr(self, name) for name in ("world_model", "inverse", "goal_policy", "label")}

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.joint <= 1):
            raise ValueError(f"expected shares of the batch in [0, 1], got joint={self.joint} and share={self.share}")
        if min(self.waypoints, *self.weights().values()) < 0 or (self.share and not sum(self.weights().values())):
            raise ValueError(f"expected weights >= 0, not all of them 0, got {self.weights()}")


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
    width: int = 128
    layers: int = 2
    heads: int = 4
    vision: str = "keypoints"
    background: bool = False
    """The vision also sees how the picture differs from the dataset's mean: for cameras that stand still."""
    vocabulary: int = 512
    """Upper limit of the instruction BPE."""
    # --- diffusion ---
    programs: Programs = field(default_factory=Programs)
    ahead: float = 0.0
    """Weight of saying where the robot will be (`waypoints` of vla/train/setup.py) from the summary of what is seen and
    said; 0: it is not asked. Actions alone teach the vision late where to look: many masks can be filled without it."""
    full_steps: int = 1500
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
    compile: bool = False
    """Compile the network for training (needs a C++ compiler on a CPU; pays on a GPU)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the hardware multiplies it natively (AMX, CUDA), float32 elsewhere."""
    # --- data ---
    shift: int = 0
    """Training pictures are moved by up to this many pixels: for when there are few demonstrations."""
    light: float = 0.0
    """Their contrast and brightness change by up to this fraction."""
    state_dropout: float = 0.0
    """Fraction of the training samples that do not see the robot's state, so that the picture is looked at."""
    holdout: float = 0.02
    """Fraction of episodes kept for validation."""

    def __post_init__(self) -> None:
        if self.queries.waypoints and not self.ahead:
            raise ValueError(
                "queries.waypoints acts on what `ahead` tells, and ahead is 0: set ahead=2, or waypoints to 0"
            )


def tabletop_nano() -> Recipe:
    """The tabletop on two CPU cores: 1.0 M parameters, 64 px.

    `vla demo`: 6,000 scenes of reach and push, 4,835 steps in 6.4 minutes on 2 cores of an Intel Xeon (AMX, bfloat16):
    199/200 on unseen scenes, 0/200 when told about another block. All fifteen tasks: 15,000 scenes, 19,654 steps in 54
    minutes on one core of the same machine: 84.8 % (83-86, n = 600), the shipped checkpoint `tabletop_nano`. The
    corruption of release 0.1 came to 85.7 % (84-87) after 16,839 steps.
    """
    return Recipe()


def tabletop_state() -> Recipe:
    """The tabletop from its state instead of pixels (environment `tabletop_state`): for ablations of the lattice."""
    return Recipe(width=64, steps=2000, full_steps=0)


def metaworld_mt10_small() -> Recipe:
    """The ten tasks of Meta-World's MT10 in one network, on two CPU cores, from 50 demonstrations a task at 96 px.

    `vla reproduce metaworld_mt10_small`: 84.0 % (79-88, n = 200) after 60 minutes on 2 cores of an AMD EPYC (AVX-512,
    bfloat16). What helped: the picture's difference from the dataset's mean, in which a puck stands out, and a summary
    that says where the robot will be (without either 74.5 %; LOG.md).
    """
    return Recipe(image_size=96, layers=3, state_dropout=0.5, steps=100_000, background=True, ahead=2.0)


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


def tabletop_unified() -> Recipe:
    """Every question from one network: plans, future images, goals, inverse dynamics, labels (`vla bench queries`)."""
    queries = Queries(joint=0.25, share=1.0, inverse=2.0, image_tokenizer="tabletop_image")
    return Recipe(holdout=0.05, batch_size=48, ahead=2.0, queries=queries)


def tabletop_test() -> Recipe:
    """Seconds instead of minutes, learns nothing: for tests that run the real commands."""
    return Recipe(
        image_size=32, width=32, layers=1, heads=2, steps=8, full_steps=4, batch_size=8, warmup=2, holdout=0.2
    )


RECIPES = {
    f.__name__: f
    for f in (tabletop_nano, tabletop_unified, tabletop_state, metaworld_mt10_small, metaworld_mt50_base, tabletop_test)
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
