# SPDX-License-Identifier: Apache-2.0
"""Step distillation: what a sampler of many steps decides, learnt by one of one or two.

    x ~ teacher(x | observation, given), T denoising steps at temperature tau
    L = sum_d 2^-d  mean over the states s that the student passes through of  -log student(x[d] | s, z, x[<d])

A student of one step passes through one state, in which nothing is known but what is given; one of two also
through that in which all coarse digits are. The teacher's tokens depend on each other, and a student that decides them
at once cannot know how, except by its noise index z: it is picked among some candidates as in training
(`noise.select_latent`), so that each index comes to stand for one way of doing it. The student so keeps the modes of
the teacher and does not mix them. Its targets are chunks that were decided whole (Salimans and Ho 2022 halve the steps
of continuous diffusion; Deschenaux and Gulcehre 2025 match the marginals of many discrete steps, which cannot be
multimodal in one).

Shapes: B samples, T steps, N positions, S sub-tokens, D digits.
"""

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Provenance, Segment, State, unmasked
from vla.diffusion.corruption import Corrupted, digit_losses
from vla.diffusion.noise import redraw, select_latent
from vla.diffusion.sampler import Sampling, sample
from vla.model import Context, LatticeModel

MOST = 2
"""Denoising steps of a student; with more there are states between, of which training on data knows."""


@torch.no_grad()
def taught(teacher: LatticeModel, context: Context, key_B: Tensor, teaching: Sampling, given: State) -> Tensor:
    """What the teacher decides: int64 (B, N, S, D). What is given stays."""
    key_B = randomness.fold(key_B, 1)
    found = sample(teacher, context, key_B, [Segment.ACTION], teaching, {Segment.ACTION: given})
    return found.segments[Segment.ACTION].state.digits_BNSD


def passed(digits_BNSD: Tensor, given: State, steps: int) -> Corrupted:
    """The states that a sampler of so many steps passes through on its way to these digits, and what it is asked.

    Rows are b * T + t. ValueError unless 1 <= steps <= 2.
    """
    if not 1 <= steps <= MOST:
        raise ValueError(f"a student has 1 or 2 denoising steps, got {steps}")
    depth = digits_BNSD.shape[-1]
    level_T = torch.arange(steps, device=digits_BNSD.device).clamp(max=depth - 1)

    def rows(x: Tensor) -> Tensor:
        return x.repeat_interleave(steps, dim=0)

    level_RNS = level_T.repeat(len(digits_BNSD))[:, None, None]
    digits, committed = rows(digits_BNSD), rows(given.known_BNS == depth)
    provenance = torch.where(committed, int(Provenance.COMMITTED), int(Provenance.FREE))
    state = unmasked(digits, torch.where(committed, depth, level_RNS), provenance)
    return Corrupted(state, digits, ~state.visible_BNSD())


def distillation_losses(
    student: LatticeModel,
    context: Context,
    digits_BNSD: Tensor,
    given: State,
    key_B: Tensor,
    steps: int,
    candidates: int,
) -> list[Tensor]:
    """The loss of each digit, D scalars in nats. `context`: of the student. `candidates`: noise indices looked at."""
    corrupted, action = passed(digits_BNSD, given, steps), Segment.ACTION
    states = {action: corrupted.state}
    indices = student.config.noise_indices
    if indices > 1:
        key_R = randomness.fold(key_B[:, None], torch.arange(steps, device=key_B.device)).flatten()
        noisy = Corrupted(redraw(corrupted.state, key_R, indices), corrupted.digits_BNSD, corrupted.asked_BNSD)
        states = select_latent(student, context, {action: noisy}, key_B, candidates, steps)
    hidden = student.decode(context.repeat(steps), states)
    return digit_losses(student.head_of(action)(hidden[action], digits_BNSD.repeat_interleave(steps, 0)), corrupted)
