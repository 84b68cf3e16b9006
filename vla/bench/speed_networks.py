# SPDX-License-Identifier: Apache-2.0
"""Networks of three sizes to be timed, and how: calls take turns, so that the machine's moods meet them all alike."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from vla import recipes
from vla.canvas import Segment
from vla.canvas import query as queries
from vla.canvas.query import Question
from vla.envs.tabletop.tasks import task_table
from vla.model import LatticeModel
from vla.model.transformer import Given
from vla.policy import Observation, Policy
from vla.tokenizers import BinTokenizer, StateScaler, TextTokenizer, Tokenizers, WordNumerals, neighbour_counts
from vla.train.setup import network


@dataclass(frozen=True)
class Size:
    """A network by its numbers; drawn weights are as fast as learnt ones."""

    width: int
    layers: int
    heads: int
    cameras: int = 1
    image_size: int = 64
    horizon: int = 16
    """Steps of a chunk, of four dimensions each."""


SIZES = {
    "nano": Size(128, 2, 4),
    "small": Size(512, 8, 8, cameras=2, image_size=96),
    "base": Size(1024, 8, 16, cameras=3, image_size=224, horizon=50),
}
"""nano is the recipe of the tabletop; small has about 30 M parameters, base about 110 M and chunks of 50 steps, as
openpi's policies decide at once."""


def tokenizers(sentences: Iterable[str], state: StateScaler, actions: Sequence[str]) -> Tokenizers:
    """Of a robot whose actions are within -1..1, the last one a gripper that opens or closes."""
    sentences, ends = list(sentences), [1.0] * len(actions)
    text = TextTokenizer.train(sentences)
    words = WordNumerals.fit(neighbour_counts([text.ids(s) for s in sentences], text.vocabulary + 1))
    binary = [False] * (len(actions) - 1) + [True]
    return Tokenizers(BinTokenizer([-x for x in ends], ends, binary, list(actions)), state, text, words)


def make(size: Size, seed: int = 0, **changes: Any) -> Policy:
    """A policy of the tabletop with drawn weights. `changes`: of its ModelConfig."""
    numbers = {name: getattr(size, name) for name in ("width", "layers", "heads", "image_size", "horizon")}
    recipe = replace(recipes.get("tabletop_nano"), **numbers)
    state = StateScaler([-0.25] * 4, [0.25] * 4, ["hand_x", "hand_y", "hand_z", "gripper"])
    examples = [str(sentence) for task in task_table() for sentence in task["examples"]]  # type: ignore[attr-defined]
    known = tokenizers(examples, state, ["dx", "dy", "dz", "gripper"])
    known.text.length = changes.get("text_length", known.text.length)
    cameras = tuple(f"camera_{number}" for number in range(size.cameras))
    config = replace(network(recipe, known, cameras), **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatticeModel(config)
        for parameter in model.parameters():  # projections that begin at 0 would hide what a sum costs or leaks
            parameter.data += 0.02 * torch.randn_like(parameter)
    return Policy(model, known, 10.0, recipe.sampling)


def seen(policy: Policy, seed: int) -> Observation:
    """Noise in every camera, a state in the middle, a sentence."""
    draw, size = np.random.default_rng(seed), policy.image_size
    images = {camera: draw.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in policy.cameras}
    state = draw.normal(0, 0.1, len(policy.state_names)).astype(np.float32)
    return Observation(images, state, "push the red block to the left")


def given(policy: Policy, rows: int, fill: bool = False) -> dict[Segment, Given]:
    """So many observations as the network reads them. `fill`: instructions as long as there is room."""
    questions = [
        queries.policy(Question(o.images, o.state, o.instruction)) for o in map(partial(seen, policy), range(rows))
    ]
    found = policy.encoder.given(questions, questions[0].query)
    if fill:
        length, most = policy.model.config.text_length, policy.tokenizers.text.vocabulary - 1
        words_BL = (torch.arange(length) % most + 1).expand(rows, -1).contiguous()
        found[Segment.INSTRUCTION] = policy.encoder.vocabulary().tokens(words_BL)
    return found


def in_turns[Name](
    calls: Mapping[Name, Callable[[int], Any]], rounds: int, warm: int = 3, block: int = 1, pause_s: float = 0.0
) -> dict[Name, np.ndarray]:
    """Milliseconds of each call, float64 (rounds,): one of each in every round, in turn. A call gets its round.

    `block`: so many rounds of one call before the next has its turn, for calls that are to find their weights in the
    cache, as they would with nothing else to do. `pause_s`: nothing happens for so long before each call, as when a
    robot asks so many times a second.
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    turns = [range(-warm, 0), *(range(first, min(first + block, rounds)) for first in range(0, rounds, block))]
    for turn in turns:
        for name, call in calls.items():
            for number in turn:
                time.sleep(pause_s if number >= 0 else 0)
                began = time.perf_counter()
                call(number)
                if number >= 0:
                    taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: np.array(values) for name, values in taken.items()}
