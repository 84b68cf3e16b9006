# SPDX-License-Identifier: Apache-2.0
"""Fewer passes for a sampler of many evaluations, and the very same answer: the sampler guesses its own future.

One evaluation says something about every hidden digit, and the sampler keeps a few of them. What it *would* keep in the
evaluations to come, if they said the same again, is a chain of drafts. All drafts are evaluated in one pass, as rows of
a batch, which for a few dozen tokens costs hardly more than one of them. Then the sampler walks along: it decides by
the evaluation of a state that it has really reached, and where the outcome is the next draft, the evaluation of that
one is there already. At the first draft that is not what it decided, it drafts anew: at least one step a pass.

At temperature 0 nothing else enters into a decision, so that the answer is that of `sample`, with fewer passes in a
row. (Self-speculation for masked models: e.g. Spiffy, SSMD; ours drafts whole states of the lattice, coarse and fine.)
"""

from dataclasses import replace

import torch
from torch import Tensor

from vla.canvas import State, hidden
from vla.diffusion.sampler import Sample, Sampling, decide, kept_fraction
from vla.model import LatticeModel, Prefix


@torch.no_grad()
def sample_speculatively(
    model: LatticeModel,
    prefix: Prefix,
    key_B: Tensor,
    sampling: Sampling,
    given: State | None = None,
    ahead: int = 4,
) -> Sample:
    """What `sample` gives; `Sample.evaluations` counts passes in a row, each with up to `ahead` rows a row.

    `key_B`: int64 (B,), not drawn from. Rows of a batch walk in step: it is for small batches. ValueError for a sampler
    that draws, revises or stops early, and for `ahead` < 1.
    """
    if sampling.temperature or sampling.noise or sampling.revisions or sampling.stop_at < 1 or ahead < 1:
        raise ValueError(
            "speculation needs temperature=0, noise=False, revisions=0, stop_at=1 and ahead >= 1: anything else makes "
            "a decision depend on more than the state"
        )
    layout, total, batch = model.config.layout, sampling.evaluations, len(key_B)
    shape_BNS = (batch, layout.positions, layout.sub_tokens)
    state = hidden(shape_BNS, layout.digits, key_B.device) if given is None else given
    now = Sample(state, torch.ones(shape_BNS, device=key_B.device), torch.zeros(shape_BNS, device=key_B.device), 0)

    def keep(h_BNW: Tensor, before: Sample, t: int) -> Sample:
        """What evaluation t (1..T) keeps."""
        fractions = kept_fraction(t, total, layout.digits, sampling.single_mask)
        return decide(model.head, h_BNW, before, key_B, sampling, 0.0, fractions)[0]

    h_BNW = model.decode(prefix, _plain(now.state))
    now, done, passes = keep(h_BNW, now, 1), 1, 1
    while done < total:
        drafts = [now]  # the first is no draft: the sampler is there
        for t in range(done + 1, min(done + ahead, total)):
            drafts.append(keep(h_BNW, drafts[-1], t))
        h_KBNW = _evaluate(model, prefix, [draft.state for draft in drafts])
        passes += 1
        for h_BNW, guessed in zip(h_KBNW, [*drafts[1:], None], strict=True):
            now, done = keep(h_BNW, now, done + 1), done + 1
            if guessed is None or not _same(now.state, guessed.state):
                break
    return replace(now, evaluations=passes)


def _plain(state: State) -> State:
    return state.with_noise(torch.zeros_like(state.noise_BNS))


def _evaluate(model: LatticeModel, prefix: Prefix, states: list[State]) -> Tensor:
    """Evaluations of K states in one pass, float (K, B, N, W)."""
    parts = zip(*((s.digits_BNSD, s.known_BNS, s.provenance_BNS, s.noise_BNS) for s in states), strict=True)
    # A row of the prefix serves the row's K states, which lie side by side.
    rows = State(*(torch.stack(part, dim=1).flatten(0, 1) for part in parts))
    h = model.decode(prefix.repeat(len(states)), _plain(rows))
    return h.unflatten(0, (-1, len(states))).transpose(0, 1)


def _same(a: State, b: State) -> bool:
    return torch.equal(a.known_BNS, b.known_BNS) and torch.equal(a.digits_BNSD, b.digits_BNSD)
