# SPDX-License-Identifier: Apache-2.0
"""Networks of three sizes to be timed, and how: calls take turns, so that the machine's moods meet them all alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vla.model import LatticeModel
from vla.policy import Observation, Policy


@dataclass(frozen=True)
class Size:
    """A network by its numbers; drawn weights are as fast as learnt ones."""

    width: int
    layers: int
    heads: int
    cameras: int = 1
    image_size: int = 64
    horizon: int = 8
    """Steps of a chunk, of four dimensions each."""


SIZES = {
    "nano": Size(128, 2, 4),
    "small": Size(512, 8, 8, cameras=2, image_size=96, horizon=16),
    "base": Size(1024, 8, 16, cameras=3, image_size=224, horizon=50),
}
"""nano is the recipe of the tabletop; small has about 30 M parameters, base about 110 M. Chunks grow with them, up
to the 50 steps that openpi's policies decide at once."""


def make(size: Size, seed: int = 0, **changes: Any) -> Policy:
    """A policy with drawn weights and the tokenizers of the shipped one. `changes`: of its ModelConfig."""
    shipped = Policy.load("tabletop_nano")
    cameras = tuple(f"camera_{number}" for number in range(size.cameras))
    config = replace(
        shipped.model.config,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        cameras=cameras,
        image_size=size.image_size,
        **{"horizon": size.horizon, **changes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatticeModel(config)
        for parameter in model.parameters():  # projections that begin at 0 would hide what a sum costs or leaks
            parameter.data += 0.02 * torch.randn_like(parameter)
    return Policy(model, shipped.tokenizers, shipped.fps, shipped.sampling)


def seen(policy: Policy, seed: int) -> Observation:
    """Noise in every camera, a state in the middle, a sentence."""
    draw, size = np.random.default_rng(seed), policy.image_size
    images = {camera: draw.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in policy.cameras}
    state = draw.normal(0, 0.1, len(policy.state_names)).astype(np.float32)
    return Observation(images, state, "push the red block to the left")


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
