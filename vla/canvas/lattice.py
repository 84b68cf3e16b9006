# SPDX-License-Identifier: Apache-2.0
"""The mask lattice: what is known about a token, and how that knowledge grows and shrinks.

A token of any modality is a number written as `digits` digits in base `base`, most significant first. Its state says
    known        how many leading digits are known: 0 (a full mask) ... digits (a plain token).
                 "Coarse digit known" is a mask that carries a prior.
    provenance   FREE, REMASKED (was known and is masked again), COMMITTED (given by the caller: never masked)
    noise        an index re-drawn at every denoising step: many interchangeable masks, the only randomness a one-step
                 sampler needs in order to be multimodal
Corruption masks digits, fine ones before coarse ones; sampling unmasks them, coarse ones first. Single-mask diffusion
is the two-level special case: every token has known = 0 or known = digits.

A state never shows a digit it should not: digits beyond `known` are stored as 0, and a token that is fully known is
FREE or COMMITTED and has noise 0, both by construction. So there is one way to write "known", whoever wrote it.

Shapes: B batch, N positions, S sub-tokens a position, D digits. All tensors int64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Provenance(IntEnum):
    FREE = 0
    REMASKED = 1
    COMMITTED = 2


@dataclass(frozen=True)
class State:
    """The lattice state of a segment. Build it with `all_masked`, `unmasked`, `remask` and `unmask` only."""

    digits_BNSD: Tensor
    """int64, 0..base-1; 0 where not known."""
    known_BNS: Tensor
    """int64, 0..D: how many leading digits are known."""
    provenance_BNS: Tensor
    """int64, a `Provenance`."""
    noise_BNS: Tensor
    """int64, the noise index; 0 where known = D."""

    @property
    def depth(self) -> int:
        """D, the number of digits."""
        return self.digits_BNSD.shape[-1]

    def visible_BNSD(self) -> Tensor:
        """bool: which digits are known."""
        return _leading(self.known_BNS, self.depth)

    def with_noise(self, noise_BNS: Tensor) -> "State":
        """The same knowledge under other noise indices (the re-draw before each denoising step)."""
        return _build(self.digits_BNSD, self.known_BNS, self.provenance_BNS, noise_BNS)

    def map(self, f: Callable[[Tensor], Tensor]) -> "State":
        """The same of other rows: `f` is applied to every tensor."""
        return State(f(self.digits_BNSD), f(self.known_BNS), f(self.provenance_BNS), f(self.noise_BNS))


def _leading(known_BNS: Tensor, depth: int) -> Tensor:
    return torch.arange(depth, device=known_BNS.device) < known_BNS.unsqueeze(-1)


def _build(digits_BNSD: Tensor, known_BNS: Tensor, provenance_BNS: Tensor, noise_BNS: Tensor) -> State:
    depth = digits_BNSD.shape[-1]
    masked_BNS = known_BNS < depth
    given_BNS = provenance_BNS == Provenance.COMMITTED
    return State(
        digits_BNSD * _leading(known_BNS, depth),
        known_BNS,
        torch.where(masked_BNS | given_BNS, provenance_BNS, int(Provenance.FREE)),
        noise_BNS * masked_BNS,
    )


def all_masked(shape_BNS: tuple[int, int, int], depth: int, device: torch.device | str = "cpu") -> State:
    """The top of the lattice: nothing is known."""
    zeros = torch.zeros(shape_BNS, dtype=torch.int64, device=device)
    return State(torch.zeros((*shape_BNS, depth), dtype=torch.int64, device=device), zeros, zeros, zeros)


def unmasked(tokens_BNSD: Tensor, known_BNS: Tensor | None = None, provenance_BNS: Tensor | None = None) -> State:
    """The state that knows the first `known_BNS` digits of `tokens_BNSD` (all of them by default)."""
    depth = tokens_BNSD.shape[-1]
    zeros = torch.zeros(tokens_BNSD.shape[:-1], dtype=torch.int64, device=tokens_BNSD.device)
    known_BNS = zeros + depth if known_BNS is None else known_BNS
    if not torch.compiler.is_compiling() and bool(((known_BNS < 0) | (known_BNS > depth)).any()):
        raise ValueError(
            f"known must be between 0 and {depth} digits, got {int(known_BNS.min())}..{int(known_BNS.max())}"
        )
    return _build(tokens_BNSD, known_BNS, zeros if provenance_BNS is None else provenance_BNS, zeros)


def remask(state: State, levels_BNS: Tensor) -> State:
    """Mask the last `levels_BNS` (>= 0) known digits and mark these tokens REMASKED. Committed tokens stay."""
    free = state.provenance_BNS != Provenance.COMMITTED
    known = torch.where(free, (state.known_BNS - levels_BNS).clamp(min=0), state.known_BNS)
    provenance = torch.where(known < state.known_BNS, int(Provenance.REMASKED), state.provenance_BNS)
    return _build(state.digits_BNSD, known, provenance, state.noise_BNS)


def unmask(state: State, tokens_BNSD: Tensor, known_BNS: Tensor) -> State:
    """Show digits of `tokens_BNSD` until `known_BNS` are known. What is known already is never overwritten."""
    known = torch.maximum(state.known_BNS, known_BNS).clamp(max=state.depth)
    digits = torch.where(state.visible_BNSD(), state.digits_BNSD, tokens_BNSD)
    return _build(digits, known, state.provenance_BNS, state.noise_BNS)
