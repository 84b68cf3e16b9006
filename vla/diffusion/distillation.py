# SPDX-License-Identifier: Apache-2.0
"""Step distillation: what a sampler of many evaluations decides, learnt by one of one or two.

    x ~ teacher(x | observation, given), T evaluations at temperature tau
    L = sum_d 2^-d  mean over the states s that the student passes through of  -log student(x[d] | s, z, x[<d])

A student of one evaluation passes through one state, in which nothing is known but what is given; one of two also
through that in which all coarse digits are. The teacher's tokens depend on each other, and a student that decides them
at once cannot know how, except by its noise index z: it is picked among some candidates as in training
(`noise.explain`), so that each index comes to stand for one way of doing it. The student so keeps the modes of the
teacher and does not mix them. Its targets are chunks that were decided whole (Salimans and Ho 2022 halve the steps of
continuous diffusion; Deschenaux and Gulcehre 2025 match the marginals of many discrete steps, which cannot be
multimodal in one).

Shapes: B samples, T evaluations, N positions, S sub-tokens, D digits.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Provenance, State, revealed
from vla.diffusion.loss import digit_losses
from vla.diffusion.noise import explain, redraw
from vla.diffusion.programs import Corrupted
from vla.diffusion.sampler import Sampling, sample
from vla.model import LatticeModel, Prefix

MOST = 2
"""Evaluations of a student; with more there are states between, of which training on data knows."""


@torch.no_grad()
def taught(teacher: LatticeModel, prefix: Prefix, key_B: Tensor, teaching: Sampling, given: State) -> Tensor:
    """What the teacher decides: int64 (B, N, S, D). What is given stays."""
    return sample(teacher, prefix, randomness.fold(key_B, 1), teaching, given).state.digits_BNSD


def passed(digits_BNSD: Tensor, given: State, evaluations: int) -> Corrupted:
    """The states that a sampler of so many evaluations passes through on its way to these digits, and what it is asked.

    Rows are b * T + t. ValueError unless 1 <= evaluations <= 2.
    """
    if not 1 <= evaluations <= MOST:
        raise ValueError(f"a student has 1 or 2 evaluations, got {evaluations}")
    depth = digits_BNSD.shape[-1]
    rungs_T = torch.arange(evaluations, device=digits_BNSD.device).clamp(max=depth - 1)

    def rows(x: Tensor) -> Tensor:
        return x.repeat_interleave(evaluations, dim=0)

    rung_RNS = rungs_T.repeat(len(digits_BNSD))[:, None, None]
    digits, committed = rows(digits_BNSD), rows(given.known_BNS == depth)
    provenance = torch.where(committed, int(Provenance.COMMITTED), int(Provenance.FREE))
    state = revealed(digits, torch.where(committed, depth, rung_RNS), provenance)
    nobody = torch.zeros_like(digits, dtype=torch.bool)
    return Corrupted(state, digits, ~state.visible_BNSD(), nobody, nobody)


def distillation_losses(
    student: LatticeModel,
    prefix: Prefix,
    digits_BNSD: Tensor,
    given: State,
    key_B: Tensor,
    evaluations: int,
    candidates: int,
) -> list[Tensor]:
    """The loss of each digit, D scalars in nats. `prefix`: of the student. `candidates`: as in `losses`, >= 1."""
    corrupted, prefix = passed(digits_BNSD, given, evaluations), prefix.repeat(evaluations)
    indices = student.config.noise_indices
    if indices > 1:
        key_R = randomness.fold(key_B[:, None], 2 + torch.arange(evaluations, device=key_B.device)).flatten()
        corrupted = replace(corrupted, state=redraw(corrupted.state, key_R, indices))
        every = torch.arange(len(key_R), device=key_B.device)
        picked_R = explain(student, prefix, corrupted, every, key_R, candidates)[:, None, None]
        corrupted = replace(corrupted, state=corrupted.state.with_noise(picked_R.expand_as(corrupted.state.known_BNS)))
    h_RNW = student.decode(prefix, corrupted.state)
    return digit_losses(student.head(h_RNW, corrupted.digits_BNSD), corrupted)
