# SPDX-License-Identifier: Apache-2.0
"""The mask lattice: what is known about a token, and how that knowledge grows and shrinks.

A token of any modality is a number written as `digits` digits in base `base`, most significant first. Its state says
    known        how many leading digits are known: 0 (a full mask) ... digits (a plain token).
                 "Coarse digit known" is a mask that carries a prior.
    provenance   FREE, SUSPECT (taken back by revision), COMMITTED (given by the caller: never climbs)
    noise        an index re-drawn at every evaluation: many interchangeable masks, the only randomness a one-step
                 sampler needs in order to be multimodal
Corruption *climbs* (forget the fine digit, then the coarse one); sampling *descends* (coarse first,
then fine); revision climbs one rung. Single-mask diffusion is the two-rung special case: every token has
known = 0 or known = digits.

A state never shows a digit it should not: digits beyond `known` are stored as 0, by construction.

Shapes: B batch, N positions, S sub-tokens a position, D digits. All tensors int64.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


class Provenance(IntEnum):
    FREE = 0
    SUSPECT = 1
    COMMITTED = 2


@dataclass(frozen=True)
class State:
    """The lattice state of a canvas. Build it with `hidden`, `revealed`, `climb` and `descend` only."""

    digits_BNSD: Tensor
    """int64, 0..base-1; 0 where not known."""
    known_BNS: Tensor
    """int64, 0..D: how many leading digits are known."""
    provenance_BNS: Tensor
    """int64, a `Provenance`."""
    noise_BNS: Tensor
    """int64, the noise index; it means something only where known < D."""

    @property
    def depth(self) -> int:
        """D, the number of digits."""
        return self.digits_BNSD.shape[-1]

    def visible_BNSD(self) -> Tensor:
        """bool: which digits are known."""
        return _leading(self.known_BNS, self.depth)

    def with_noise(self, noise_BNS: Tensor) -> "State":
        """The same knowledge under other noise indices (the re-draw before each evaluation)."""
        return replace(self, noise_BNS=noise_BNS)


def _leading(known_BNS: Tensor, depth: int) -> Tensor:
    return torch.arange(depth, device=known_BNS.device) < known_BNS.unsqueeze(-1)


def _build(digits_BNSD: Tensor, known_BNS: Tensor, provenance_BNS: Tensor, noise_BNS: Tensor) -> State:
    visible = _leading(known_BNS, digits_BNSD.shape[-1])
    return State(digits_BNSD * visible, known_BNS, provenance_BNS, noise_BNS)


def hidden(shape_BNS: tuple[int, int, int], depth: int, device: torch.device | str = "cpu") -> State:
    """The top of the lattice: nothing is known."""
    zeros = torch.zeros(shape_BNS, dtype=torch.int64, device=device)
    return State(torch.zeros((*shape_BNS, depth), dtype=torch.int64, device=device), zeros, zeros, zeros)


def revealed(tokens_BNSD: Tensor, known_BNS: Tensor | None = None, provenance_BNS: Tensor | None = None) -> State:
    """The state that knows the first `known_BNS` digits of `tokens_BNSD` (all of them by default)."""
    depth = tokens_BNSD.shape[-1]
    zeros = torch.zeros(tokens_BNSD.shape[:-1], dtype=torch.int64, device=tokens_BNSD.device)
    known_BNS = zeros + depth if known_BNS is None else known_BNS
    if bool(((known_BNS < 0) | (known_BNS > depth)).any()):
        raise ValueError(
            f"known must be between 0 and {depth} digits, got {int(known_BNS.min())}..{int(known_BNS.max())}"
        )
    return _build(tokens_BNSD, known_BNS, zeros if provenance_BNS is None else provenance_BNS, zeros)


def climb(state: State, rungs_BNS: Tensor, suspect: bool = False) -> State:
    """Forget the last `rungs_BNS` (>= 0) known digits. Committed tokens stay. `suspect` marks what was taken back."""
    free = state.provenance_BNS != Provenance.COMMITTED
    known = torch.where(free, (state.known_BNS - rungs_BNS).clamp(min=0), state.known_BNS)
    provenance = state.provenance_BNS
    if suspect:
        provenance = torch.where(known < state.known_BNS, int(Provenance.SUSPECT), provenance)
    return _build(state.digits_BNSD, known, provenance, state.noise_BNS)


def descend(state: State, tokens_BNSD: Tensor, known_BNS: Tensor) -> State:
    """Reveal digits of `tokens_BNSD` until `known_BNS` are known. What is known already is never overwritten."""
    known = torch.maximum(state.known_BNS, known_BNS).clamp(max=state.depth)
    digits = torch.where(state.visible_BNSD(), state.digits_BNSD, tokens_BNSD)
    return _build(digits, known, state.provenance_BNS, state.noise_BNS)


def is_complete(state: State) -> Tensor:
    """bool (): every digit of every token is known."""
    return (state.known_BNS == state.depth).all()
