# SPDX-License-Identifier: Apache-2.0
"""Corruption and loss: which digits of a clean segment are masked or falsified, and what is learnt from them.

Each sample is corrupted twice, and the two copies share one context (its pictures are encoded once):
  full pair           with probability `p_full_mask`: (everything masked, every coarse digit known and every fine one
                      masked). Sampling starts with the first and passes through the second, so both get an atom of mass
  complementary pair  otherwise: a mask and its complement, so that every token is asked once (complementary masking:
                      LaViDa, Li et al. 2025). Known are (nothing | all), (coarse | all) or (nothing | coarse) digits,
                      the pairs of levels that sampling in many steps passes through
The ratio of a mask is bell-shaped and clipped, because extremes have variance and no signal (arXiv 2605.13026). A mask
hides single tokens, whole timesteps, whole dimensions, a tail of the chunk or a band of neighbouring steps. A share
`p_wrong` of the tokens that are shown is false: plain masks are as sure of false visible tokens as of true ones (arXiv
2512.15596).

Where actions are partly given (`begun`), what is given is COMMITTED in both copies, is never false and has no loss.
Committed first steps are what was *executed*, and what is learnt is the expert's label: where they differ, the rest of
the chunk can only be known by reading the beginning (training-time real-time chunking, arXiv 2512.05964).

For a canvas x with digits x[n, d] and a corrupted state s that shows the first known[n] digits of token n, the loss is

    L = sum_d 2^-d  mean_{n : known[n] <= d} [ -log p(x[n, d] | s, z, x[n, <d]) ].

The chain inside a position (digit d is predicted given the digits before it) makes the sum over d of a fully masked
token its exact -log-likelihood given s. The mean over masked tokens, not their sum over 1/t, is the weighting of
MaskGIT and of most masked VLAs: it bounds the NLL from above up to the weights of the levels (for equal weights and
ratios drawn as 1/t it is the MDLM bound, Sahoo et al. 2024, eq. 10). Fine digits weigh less: they are worth less in the
robot's units. The noise index z of a copy that has one is picked among some candidates (`noise.select_latent`).

Every draw is a function of the sample's key, and of nothing else in the batch. Shapes: B samples, K = 2 copies, H
steps, A dimensions, N positions, S sub-tokens, D digits, V base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import processes, randomness
from vla.canvas import Layout, Provenance, Segment, State, unmasked
from vla.diffusion.noise import DIGIT_DECAY, redraw, select_latent
from vla.model import Context, LatticeModel

COPIES = 2
SHAPES = ("tokens", "timesteps", "dimensions", "tail", "band")
Begun = Literal["", "prefix", "any"]
"""What is committed of actions: nothing; the first steps; the first or the last steps, single steps, single tokens, or
only their coarse digits."""


@dataclass(frozen=True)
class CorruptionConfig:
    """How much is masked. Probabilities in [0, 1]."""

    p_full_mask: float = 0.5
    """The full pair; what is left are complementary pairs."""
    p_keep_coarse: float = 0.4
    """A copy of a complementary pair keeps the coarse digit of the tokens it masks: (coarse, all) known."""
    p_coarse_only: float = 0.4
    """A copy of a complementary pair shows no more than the coarse digit of the tokens it shows: (nothing, coarse)."""
    p_structured: float = 0.5
    """A complementary pair masks whole timesteps, dimensions, a tail or a band instead of single tokens."""
    p_wrong: float = 0.04
    """Of the tokens that are shown, how many are false."""
    p_remasked: float = 0.25
    """Of the copies that show something: what is masked there counts as remasked."""
    p_noisy: float = 0.25
    """Of the copies, where there are several noise indices; all others are learnt under the plain mask."""
    max_prefix: float = 0.75
    """The committed first steps are 1 to this fraction of the chunk."""
    min_ratio: float = 0.1
    """Mask ratios are clipped to [min_ratio, 1 - min_ratio]: the complement is a mask, too."""
    single_mask: bool = False
    """The two-level lattice of other masked VLAs: a token is masked with all its digits, or shown with all of them."""
    complementary: bool = True
    """False: the second copy is another mask of the same ratio instead of the complement."""
    bell: bool = True
    """False: ratios are uniform."""

    def __post_init__(self) -> None:
        if self.p_keep_coarse + self.p_coarse_only > 1:
            raise ValueError(
                f"p_keep_coarse + p_coarse_only must be at most 1, got {self.p_keep_coarse} + {self.p_coarse_only}"
            )


UNIFORM_MASKING = CorruptionConfig(
    p_full_mask=0,
    p_keep_coarse=0,
    p_coarse_only=0,
    p_structured=0,
    p_wrong=0,
    p_remasked=0,
    min_ratio=0,
    single_mask=True,
    complementary=False,
    bell=False,
)
"""Plain random masking, the baseline: one mask, independent masks of uniform ratio."""


@dataclass(frozen=True)
class Corrupted:
    """The corrupted segment of K copies a sample (row b * K + k) and what is asked of it."""

    state: State
    digits_BNSD: Tensor
    """int64, the clean tokens."""
    asked_BNSD: Tensor
    """bool: digits that are masked and real (not padding), after true coarse digits: these have a loss."""
    there_BN: Tensor | None = None
    """bool: of a text, which positions there are."""

    def only(self, rows_B: Tensor) -> "Corrupted":
        """The same, asked of some samples only. `rows_B`: bool, a sample each."""
        asked_BNSD = self.asked_BNSD & rows_B.repeat_interleave(COPIES)[:, None, None, None]
        return replace(self, asked_BNSD=asked_BNSD)


def ratios(key_B: Tensor, config: CorruptionConfig) -> Tensor:
    """Mask ratios, float64 (B,): the mean of two uniform numbers is bell-shaped."""
    times_B2 = randomness.uniform(key_B, "times", 2)
    ratio_B = times_B2.mean(-1) if config.bell else times_B2[:, 0]
    return ratio_B.clamp(config.min_ratio, 1 - config.min_ratio)


def corrupt(
    digits_BHAD: Tensor,
    pad_BH: Tensor,
    key_B: Tensor,
    layout: Layout,
    config: CorruptionConfig,
    radix_AD: Tensor | None = None,
    begun: Begun = "",
    executed_BHAD: Tensor | None = None,
) -> Corrupted:
    """Corrupt clean digits, int64 (B, H, A, D). `pad_BH`: bool, (B, H) or (B, H, A), what is not to be learnt: steps
    past the episode's end.

    `radix_AD`: int64, how many values a digit of a dimension has (all of `layout.base` by default); false digits stay
    below it. `begun`: what is committed. `executed_BHAD`: the digits that were executed, which committed first steps
    show; the clean ones by default.
    """
    batch, horizon, dims, depth = digits_BHAD.shape
    device = digits_BHAD.device
    pad_BHA = pad_BH if pad_BH.ndim == 3 else pad_BH.unsqueeze(-1).expand(-1, -1, dims)

    # === 1. A rank in [0, 1) for every token; a token is masked in copy 0 if its rank is below the ratio, else in 1 ===
    def uniform(name: str, *shape: int) -> Tensor:
        return randomness.uniform(key_B, name, *shape)

    step_1H1 = torch.arange(horizon, device=device).view(1, horizon, 1)
    by_place = [
        uniform("rank", horizon, dims),
        uniform("rank of steps", horizon, 1).expand(-1, -1, dims),
        uniform("rank of dimensions", 1, dims).expand(-1, horizon, -1),
        (1 - (step_1H1 + 1) / (horizon + 1)).expand(batch, -1, dims).double(),
        ((step_1H1 / horizon + uniform("start of the band")[:, None, None]) % 1).expand(-1, -1, dims),
    ]
    kind_B = torch.where(
        uniform("structured") < config.p_structured, 1 + randomness.integers(key_B, "shape", len(SHAPES) - 1), 0
    )
    rank_BHA = torch.stack(by_place)[kind_B, torch.arange(batch, device=device)]
    ratio_B11 = ratios(key_B, config)[:, None, None]
    first_BHA = rank_BHA < ratio_B11
    second_BHA = ~first_BHA if config.complementary else uniform("second rank", horizon, dims) < ratio_B11

    # === 2. Known digits of both copies ===
    coarse = 0 if config.single_mask else min(1, depth - 1)
    levels_BK11 = uniform("levels", COPIES)[:, :, None, None]
    low_BK11 = torch.where((levels_BK11 < config.p_keep_coarse) & (not config.single_mask), coarse, 0)
    only_BK11 = (levels_BK11 >= 1 - config.p_coarse_only) & (not config.single_mask)
    high_BK11 = torch.where(only_BK11, max(coarse, 1), depth)
    masks_BKHA = torch.stack([first_BHA, second_BHA], dim=1)
    known_BKHA = torch.where(masks_BKHA, low_BK11, high_BK11)
    is_full_B1 = (uniform("pair") < config.p_full_mask)[:, None, None]
    known_BKHA[:, 0] = torch.where(is_full_B1, 0, known_BKHA[:, 0])
    if not config.single_mask:  # a single mask has no middle: its second copy stays a random mask
        known_BKHA[:, 1] = torch.where(is_full_B1, coarse, known_BKHA[:, 1])

    # === 3. What is committed, and padding, which is never shown ===
    given_BHA, executed_B = committed(key_B, horizon, dims, depth, begun, config.max_prefix)
    given_BHA = torch.where(pad_BHA, 0, given_BHA)
    known_BKHA = torch.where(pad_BHA.unsqueeze(1), 0, torch.maximum(known_BKHA, given_BHA.unsqueeze(1)))
    known_BKHA = torch.where((given_BHA > 0).unsqueeze(1), given_BHA.unsqueeze(1), known_BKHA)
    committed_BKHA = (given_BHA > 0).unsqueeze(1).expand_as(known_BKHA)
    shows_BK11 = (known_BKHA > 0).any(-1, True).any(-2, True)
    remasked_BK11 = (uniform("remasked", COPIES) < config.p_remasked)[:, :, None, None] & shows_BK11
    provenance_BKHA = torch.where(remasked_BK11.expand_as(known_BKHA), int(Provenance.REMASKED), int(Provenance.FREE))
    provenance_BKHA = torch.where(committed_BKHA, int(Provenance.COMMITTED), provenance_BKHA)

    # === 4. False tokens among those shown ===
    clean_BKHAD = digits_BHAD.unsqueeze(1).expand(-1, COPIES, -1, -1, -1)
    false_BKHA = uniform("wrong", COPIES, horizon, dims) < config.p_wrong
    false_BKHA = false_BKHA & (known_BKHA > 0) & ~committed_BKHA
    # In a complementary pair a token that keeps its coarse digit keeps the true one: nobody else asks for the rest.
    false_BKHA = false_BKHA & (~masks_BKHA | is_full_B1.unsqueeze(1))
    radix_AD = torch.full((dims, depth), layout.base, device=device) if radix_AD is None else radix_AD
    shown_BKHAD = torch.where(false_BKHA.unsqueeze(-1), falsify(clean_BKHAD, key_B, radix_AD), clean_BKHAD)
    if executed_BHAD is not None:
        was_done_BKHA = committed_BKHA & executed_B[:, None, None, None]
        shown_BKHAD = torch.where(was_done_BKHA.unsqueeze(-1), executed_BHAD.unsqueeze(1), shown_BKHAD)

    # === 5. The state, and what is asked ===
    def rows(x_BKHA: Tensor) -> Tensor:
        return layout.fold(x_BKHA.flatten(0, 1))

    digits_BNSD, shown_BNSD, given_BNS = rows(clean_BKHAD), rows(shown_BKHAD), rows(committed_BKHA)
    state = unmasked(shown_BNSD, rows(known_BKHA), rows(provenance_BKHA))
    real_BNS1 = rows((~pad_BHA).unsqueeze(1).expand_as(known_BKHA)).unsqueeze(-1)
    visible_BNSD = state.visible_BNSD()
    wrong_BNSD = visible_BNSD & (shown_BNSD != digits_BNSD)
    asked_BNSD = ~visible_BNSD & real_BNS1 & ~wrong_BNSD.any(-1, keepdim=True)
    # Committed digits that were executed and differ from the label have no finer digits to be learnt.
    asked_BNSD = asked_BNSD & ~(given_BNS & (state.known_BNS == depth)).unsqueeze(-1)
    return Corrupted(state, digits_BNSD, asked_BNSD)


def committed(
    key_B: Tensor, horizon: int, dims: int, depth: int, begun: Begun, longest: float
) -> tuple[Tensor, Tensor]:
    """How many leading digits of each token are committed, int64 (B, H, A); bool (B,): are these the first steps?"""
    batch, device = len(key_B), key_B.device
    nothing_BHA = torch.zeros(batch, horizon, dims, dtype=torch.int64, device=device)
    if not begun:
        return nothing_BHA, torch.zeros(batch, dtype=torch.bool, device=device)
    step_H = torch.arange(horizon, device=device)
    most = max(1, min(horizon - 1, round(longest * horizon)))
    length_B1 = 1 + randomness.integers(key_B, "committed steps", most).unsqueeze(1)
    first_BHA = (step_H < length_B1).unsqueeze(-1).expand(-1, -1, dims)
    if begun == "prefix":
        return depth * first_BHA.long(), torch.ones(batch, dtype=torch.bool, device=device)
    share_B11 = randomness.uniform(key_B, "share of committed")[:, None, None]
    shapes = [
        first_BHA,
        (step_H >= horizon - length_B1).unsqueeze(-1).expand(-1, -1, dims),
        (randomness.uniform(key_B, "committed step", horizon, 1) < share_B11).expand(-1, -1, dims),
        randomness.uniform(key_B, "committed token", horizon, dims) < share_B11,
    ]
    kind_B = randomness.integers(key_B, "kind of committed", len(shapes))
    chosen_BHA = torch.stack(shapes)[kind_B, torch.arange(batch, device=device)]
    level_B = torch.where(randomness.uniform(key_B, "coarse committed") < 0.25, min(1, depth), depth)
    return level_B[:, None, None] * chosen_BHA.long(), kind_B == 0


def falsify(digits_BKHAD: Tensor, key_B: Tensor, radix_AD: Tensor) -> Tensor:
    """Other tokens of the same dimensions: the coarse digit moves by one (half of them) or anywhere, the rest is new.

    int64 (B, K, H, A, D). A dimension with one value only keeps it.
    """
    shape = digits_BKHAD.shape[1:-1]
    radix_A = radix_AD[:, 0]
    coarse = digits_BKHAD[..., 0]
    anywhere = (
        coarse + 1 + randomness.integers(key_B, "anywhere", 1 << 30, *shape) % (radix_A - 1).clamp(min=1)
    ) % radix_A
    side = 2 * randomness.integers(key_B, "side", 2, *shape) - 1
    beside = coarse + side
    beside = torch.where((beside < 0) | (beside >= radix_A), coarse - side, beside).clamp(min=0)
    near = randomness.uniform(key_B, "near or far", *shape) < 0.5
    redrawn = randomness.integers(key_B, "redrawn", 1 << 30, *digits_BKHAD.shape[1:]) % radix_AD
    return torch.cat([torch.where(near, beside, anywhere).unsqueeze(-1), redrawn[..., 1:]], dim=-1)


# --- the loss --------------------------------------------------------------------------------------------------------
def denoising_losses(
    model: LatticeModel,
    context: Context,
    corrupted: Mapping[Segment, Corrupted],
    key_B: Tensor,
    p_noisy: float = 0.0,
    candidates: int = 1,
) -> dict[Segment, list[Tensor]]:
    """One denoising step of all segments that are asked. Returns the loss of each digit of each, scalars in nats.

    `context`: one row a sample, read once for both copies. `p_noisy`: of the copies, how many have a noise index, the
    same one in all segments. `candidates`: how many of them are looked at; 1 looks at none and keeps what was drawn.
    """
    states, indices = {segment: c.state for segment, c in corrupted.items()}, model.config.noise_indices
    if indices > 1:
        key_BK = randomness.fold(key_B[:, None], torch.arange(COPIES, device=key_B.device)).flatten()
        noisy_BK = randomness.uniform(key_BK, "noisy") < p_noisy
        states = {segment: redraw(state, key_BK, indices, noisy_BK) for segment, state in states.items()}
        if candidates > 1:
            asked = {segment: replace(c, state=states[segment]) for segment, c in corrupted.items()}
            states = select_latent(model, context, asked, key_B, candidates, COPIES)
    there = {segment: c.there_BN for segment, c in corrupted.items() if c.there_BN is not None}
    hidden = model.decode(context.repeat(COPIES), states, there)
    return {s: digit_losses(model.head_of(s)(hidden[s], c.digits_BNSD), c) for s, c in corrupted.items()}


def digit_losses(logits: list[Tensor], corrupted: Corrupted) -> list[Tensor]:
    """Mean cross-entropy of each digit in nats, a list of D scalars. `logits`: D tensors (B, N, S, V)."""
    result = []
    for d, logits_BNSV in enumerate(logits):
        nll = F.cross_entropy(logits_BNSV.flatten(0, -2), corrupted.digits_BNSD[..., d].flatten(), reduction="none")
        weight = corrupted.asked_BNSD[..., d].to(nll.dtype)
        # A digit that is not asked may be one that its dimension never shows: infinitely unlikely.
        nll = torch.where(weight > 0, nll.view(weight.shape), 0.0)
        result.append(nll.sum() / processes.mean(weight.sum()).clamp(min=1 / processes.world()))
    return result


def total_loss(digits: list[Tensor], decay: float = DIGIT_DECAY) -> Tensor:
    """sum_d decay^d digits[d]."""
    return torch.stack([loss * decay**d for d, loss in enumerate(digits)]).sum()
