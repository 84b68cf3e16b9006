# SPDX-License-Identifier: Apache-2.0
"""From the frame cache to what LeRobot's policies eat: observations, batches, statistics, the instruction as numbers.

The cache is the one that our own training reads: a memory map, tens of times faster than LeRobot's video decoding,
which favours its policies. Statistics are over all frames: release 0.6.1 stores means of per-episode quantiles.

ACT, Diffusion and VQ-BeT have no language input. They are told the instruction through the state: a fixed code of the
sentence, one number for each (place, word) that occurs in the dataset, 1 if that word stands at that place. It tells
apart all sentences of the dataset, and what two of them share is the same in both; unknown words are zeros.

Shapes: B samples, S state values, C channels, H W pixels, A action dimensions, L numbers of a sentence.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla import randomness
from vla.data.batches import Batch
from vla.data.cache import FrameCache
from vla.recipes import Recipe
from vla.train import augment

IMAGE, STATE, ACTION = "observation.images.", "observation.state", "action"
FRAMES_FOR_STATISTICS = 4000
"""Of the pictures' mean and deviation; those of state and action are over all frames."""


@dataclass(frozen=True)
class SentenceCode:
    """Sentences -> float32 (B, L), zeros and ones."""

    pairs: tuple[tuple[int, str], ...]
    """(place, word), sorted."""

    @classmethod
    def of(cls, sentences: Iterable[str]) -> "SentenceCode":
        """The code of a dataset's sentences. ValueError if there is no word in them."""
        pairs = sorted({pair for sentence in sentences for pair in enumerate(_words(sentence))})
        if not pairs:
            raise ValueError("expected instructions with words, got none; policies without language need them, too")
        return cls(tuple(pairs))

    @property
    def length(self) -> int:
        return len(self.pairs)

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """float32 (B, L)."""
        place = {pair: i for i, pair in enumerate(self.pairs)}
        code = np.zeros((len(sentences), self.length), np.float32)
        for row, sentence in enumerate(sentences):
            for pair in enumerate(_words(sentence)):
                if pair in place:
                    code[row, place[pair]] = 1
        return code


def _words(sentence: str) -> list[str]:
    return re.findall(r"\w+", sentence.lower())


@dataclass(frozen=True)
class Inputs:
    """How observations of one dataset become a policy's."""

    cameras: tuple[str, ...]
    tasks: tuple[str, ...]
    """Instructions of the dataset, by task index."""
    code: SentenceCode | None
    """Appended to the state; None: the policy reads the sentence itself."""
    stacked: bool
    """The policy wants an axis of observation steps, of length 1, in training."""

    def observation(self, images: dict[str, np.ndarray], state_BS: np.ndarray, sentences: Sequence[str]) -> Batch:
        """uint8 (B, H, W, C) a camera -> float 0..1 (B, C, H, W); the state with the sentence; "task"."""
        if self.code is not None:
            state_BS = np.concatenate([state_BS, self.code(sentences)], axis=1)
        return {
            **{IMAGE + c: torch.from_numpy(images[c]).permute(0, 3, 1, 2).float() / 255 for c in self.cameras},
            STATE: torch.from_numpy(np.asarray(state_BS, np.float32)),
            "task": list(sentences),
        }

    def batch(self, batch: Batch) -> Batch:
        """A batch of `vla.data.batches`, as LeRobot's loader would give it: the present moment."""
        images = {camera: pictures[:, -1] for camera, pictures in batch["images"].items()}
        found = self.observation(images, batch["state"][:, -1], [self.tasks[i] for i in batch["task_index"]])
        if self.stacked:
            found = {k: v.unsqueeze(1) if isinstance(v, Tensor) else v for k, v in found.items()}
        return found | {
            ACTION: torch.from_numpy(batch["actions"]),
            "action_is_pad": torch.from_numpy(batch["is_pad"]),
        }


def augmented(batch: Batch, recipe: Recipe, key_B: Tensor, middle_S: np.ndarray) -> Batch:
    """The batch as the recipe augments it: pictures moved and relit, the state left out of the same samples as ours.

    A state that is left out is the mean one, `middle_S`; the instruction, which is appended later, stays.
    """
    if not (recipe.shift or recipe.light or recipe.drop_state):
        return batch
    pictures = {c: torch.from_numpy(x) for c, x in batch["images"].items()}
    images = {c: x.numpy() for c, x in augment.augmented(pictures, key_B, recipe).items()}
    left_out_B = (randomness.uniform(key_B, "drop state") < recipe.drop_state).numpy()
    return batch | {"images": images, "state": np.where(left_out_B[:, None, None], middle_S, batch["state"])}


def statistics(cache: FrameCache, code: SentenceCode | None) -> dict[str, dict[str, Tensor]]:
    """mean, std, min and max of every feature, as LeRobot's normaliser wants them; the sentence code passes unchanged.

    A rare word has a small deviation: normalised, it would be a very large number.
    """
    state = _of(cache.state)
    if code is not None:
        unchanged = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0}
        state = {k: np.concatenate([v, np.full(code.length, unchanged[k])]) for k, v in state.items()}
    found = {STATE: state, ACTION: _of(cache.action)}
    for camera, frames in cache.frames.items():
        some = frames[:: max(1, len(frames) // FRAMES_FOR_STATISTICS)].reshape(-1, frames.shape[-1])
        found[IMAGE + camera] = {k: v[:, None, None] for k, v in _of(some.astype(np.float32) / 255).items()}
    return {name: {k: torch.tensor(v, dtype=torch.float32) for k, v in of.items()} for name, of in found.items()}


def _of(values_ND: np.ndarray) -> dict[str, Any]:
    x = values_ND.astype(np.float64)
    return {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0)}
