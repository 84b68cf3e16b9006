# SPDX-License-Identifier: Apache-2.0
"""Corruption: which digits of a clean canvas are forgotten or falsified, for every copy of every sample.

Each sample is corrupted twice, and the two copies share one prefix (its image is encoded once):
  full pair           with probability `full`: (everything hidden, every coarse digit known and every fine one hidden).
                      Sampling starts with the first and passes through the second, so both get an atom of mass.
  revision pair       with probability `revise`: (everything hidden, everything shown with up to a third of it wrong).
                      Revision starts with the second.
  complementary pair  otherwise: a mask and its complement, so that every token is asked for once
                      (complementary masking: LaViDa, Li et al. 2025). Known are (nothing | all), (coarse | all) or
                      (nothing | coarse) digits, the pairs of rungs that sampling in many evaluations passes
                      through. What is hidden counts as taken back (SUSPECT) in some copies.
The ratio of a mask is bell-shaped and clipped, because extremes have variance and no signal (arXiv 2605.13026), and
its times are a low-discrepancy sequence over the batch, one coordinate for each segment. A mask hides single tokens,
whole timesteps, whole dimensions, a tail of the chunk or a band of neighbouring steps. With probability `prefix` the
first steps are given as COMMITTED in both copies (training-time real-time chunking, arXiv 2512.05964). A share
`wrong` of the tokens that are shown is false: their coarse digit is a neighbour or any other digit, the digits after
it are drawn anew. Plain masks are as sure of false visible tokens as of true ones (arXiv 2512.15596).

Every draw is a function of the sample's key. Shapes: B samples, K = 2 copies, H steps, A dimensions, N positions,
S sub-tokens, D digits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vla import processes, randomness
from vla.canvas import Layout, Provenance, State, revealed
from vla.diffusion.noise import redraw

COPIES = 2
SHAPES = ("tokens", "timesteps", "dimensions", "tail", "band")


@dataclass(frozen=True)
class Programs:
    """How much of what is hidden. Probabilities in [0, 1]."""

    full: float = 0.5
    """The full pair."""
    revise: float = 0.1
    """The revision pair; what is left are complementary pairs."""
    keep_coarse: float = 0.4
    """A copy of a complementary pair keeps the coarse digit of the tokens it hides: (coarse, all) known."""
    only_coarse: float = 0.4
    """A copy of a complementary pair shows no more than the coarse digit of the tokens it shows: (nothing, coarse)."""
    structured: float = 0.5
    """A complementary pair hides whole timesteps, dimensions, a tail or a band instead of single tokens."""
    wrong: float = 0.08
    """Of the tokens that are shown, how many are false."""
    prefix: float = 0.1
    """The first d steps are given, d uniform in 1..max_prefix."""
    max_prefix: int = 4
    min_ratio: float = 0.1
    """Mask ratios are clipped to [min_ratio, 1 - min_ratio]: the complement is a mask, too."""
    noisy: float = 1.0
    """Of the copies that may have a noise index (`noisy_copy`); all others are learnt under the plain mask."""
    single_mask: bool = False
    """The two-rung lattice of other masked VLAs: a token is hidden with all its digits, or shown with all of them."""
    complementary: bool = True
    """False: the second copy is another mask of the same ratio instead of the complement."""
    bell: bool = True
    """False: ratios are uniform."""

    def __post_init__(self) -> None:
        for a, b in (("full", "revise"), ("keep_coarse", "only_coarse")):
            if getattr(self, a) + getattr(self, b) > 1:
                raise ValueError(f"{a} + {b} must be at most 1, got {getattr(self, a)} + {getattr(self, b)}")
        if self.single_mask and self.keep_coarse + self.only_coarse > 0:
            raise ValueError("a single mask has no coarse rung: set keep_coarse and only_coarse to 0")


PLAIN = Programs(
    full=0,
    revise=0,
    keep_coarse=0,
    only_coarse=0,
    structured=0,
    wrong=0,
    prefix=0,
    min_ratio=0,
    single_mask=True,
    complementary=False,
    bell=False,
)
"""Plain random masking, the baseline: one mask, independent masks of uniform ratio."""


@dataclass(frozen=True)
class Corrupted:
    """The corrupted canvas of K copies a sample (row b * K + k) and what is asked of it."""

    state: State
    digits_BNSD: Tensor
    """int64, the clean tokens."""
    asked_BNSD: Tensor
    """bool: digits that are hidden and real (not padding), after true coarse digits: these have a loss."""
    judged_BNSD: Tensor
    """bool: digits that are shown, real and not committed: the quality head says whether they are true."""
    wrong_BNSD: Tensor
    """bool: shown digits that are false."""


def times(key_B: Tensor, coordinates: int) -> Tensor:
    """Low-discrepancy times in [0, 1), float64 (B, coordinates): a Sobol sequence over the batch, shifted at random."""
    whole_batch = key_B.shape[0] * processes.world()
    points_BC = torch.quasirandom.SobolEngine(coordinates).draw(whole_batch, dtype=torch.float64)
    shift_1C = randomness.uniform(processes.first(key_B[:1]), "shift", coordinates)
    return (processes.dealt(points_BC).to(key_B.device) + shift_1C) % 1


def ratios(key_B: Tensor, segments: int, programs: Programs) -> Tensor:
    """Mask ratios, float64 (B, segments), one noise level a segment: the mean of two times is bell-shaped."""
    times_BS2 = times(key_B, 2 * segments).unflatten(1, (segments, 2))
    ratio_BS = times_BS2.mean(-1) if programs.bell else times_BS2[..., 0]
    return ratio_BS.clamp(programs.min_ratio, 1 - programs.min_ratio)


def corrupt(
    digits_BHAD: Tensor,
    pad_BH: Tensor,
    key_B: Tensor,
    layout: Layout,
    programs: Programs,
    noise_indices: int,
    radix_AD: Tensor | None = None,
) -> Corrupted:
    """Corrupt clean action digits, int64 (B, H, A, D). `pad_BH`: bool, (B, H) or (B, H, A), what is not to be learnt:
    steps past the episode's end.

    `radix_AD`: int64, how many values a digit of a dimension has (all of `layout.base` by default); false digits stay
    below it.
    """
    batch, horizon, dims, depth = digits_BHAD.shape
    device = digits_BHAD.device
    pad_BHA = pad_BH if pad_BH.ndim == 3 else pad_BH.unsqueeze(-1).expand(-1, -1, dims)

    # === 1. A rank in [0, 1) for every token; a token is hidden in copy 0 if its rank is below the ratio, else in 1 ===
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
        uniform("structured") < programs.structured, 1 + randomness.integers(key_B, "shape", len(SHAPES) - 1), 0
    )
    rank_BHA = torch.stack(by_place)[kind_B, torch.arange(batch, device=device)]
    ratio_B11 = ratios(key_B, 1, programs)[:, :, None]
    first_BHA = rank_BHA < ratio_B11
    second_BHA = ~first_BHA if programs.complementary else uniform("second rank", horizon, dims) < ratio_B11

    # === 2. Known digits of both copies ===
    coarse = 0 if programs.single_mask else min(1, depth - 1)
    rungs_BK11 = uniform("rungs", COPIES)[:, :, None, None]
    low_BK11 = torch.where(rungs_BK11 < programs.keep_coarse, coarse, 0)
    high_BK11 = torch.where(rungs_BK11 >= 1 - programs.only_coarse, max(coarse, 1), depth)
    hides_BKHA = torch.stack([first_BHA, second_BHA], dim=1)
    known_BKHA = torch.where(hides_BKHA, low_BK11, high_BK11)
    pair_B = uniform("pair")
    is_full_B1, is_revision_B1 = (pair_B < programs.full)[:, None, None], (pair_B >= 1 - programs.revise)[:, None, None]
    known_BKHA[:, 0] = torch.where(is_full_B1 | is_revision_B1, 0, known_BKHA[:, 0])
    if not programs.single_mask:  # a single mask has no middle: its second copy stays a random mask
        known_BKHA[:, 1] = torch.where(is_full_B1, coarse, known_BKHA[:, 1])
    known_BKHA[:, 1] = torch.where(is_revision_B1, depth, known_BKHA[:, 1])

    # === 3. Committed first steps, and padding, which is never shown ===
    length_B = 1 + randomness.integers(key_B, "prefix length", min(programs.max_prefix, max(horizon - 1, 1)))
    length_B = torch.where(uniform("prefix") < programs.prefix, length_B, 0)
    given_BH = torch.arange(horizon, device=device) < length_B[:, None]
    known_BKHA = torch.where(given_BH[:, None, :, None], depth, known_BKHA)
    known_BKHA = torch.where(pad_BHA.unsqueeze(1), 0, known_BKHA)
    taken_back_BK11 = (uniform("suspect", COPIES) < 0.25)[:, :, None, None] & (known_BKHA > 0).any(-1, True).any(
        -2, True
    )
    provenance_BKHA = torch.where(taken_back_BK11 & (known_BKHA < depth), int(Provenance.SUSPECT), int(Provenance.FREE))
    committed_BKHA = (given_BH.unsqueeze(-1) & ~pad_BHA).unsqueeze(1).expand_as(known_BKHA)
    provenance_BKHA = torch.where(committed_BKHA, int(Provenance.COMMITTED), provenance_BKHA)

    # === 4. False tokens among those shown: more of them where a copy is there to be revised ===
    clean_BKHAD = digits_BHAD.unsqueeze(1).expand(-1, COPIES, -1, -1, -1)
    share_BK11 = torch.full((batch, COPIES), programs.wrong, device=device, dtype=torch.float64)
    share_BK11[:, 1] = torch.where(is_revision_B1[:, 0, 0], uniform("share of wrong") / 3, share_BK11[:, 1])
    false_BKHA = uniform("wrong", COPIES, horizon, dims) < share_BK11[:, :, None, None]
    false_BKHA &= (known_BKHA > 0) & ~committed_BKHA
    # In a complementary pair a token that keeps its coarse digit keeps the true one: nobody else asks for the rest.
    false_BKHA &= ~hides_BKHA | (is_full_B1 | is_revision_B1).unsqueeze(1)
    radix_AD = torch.full((dims, depth), layout.base, device=device) if radix_AD is None else radix_AD
    shown_BKHAD = torch.where(false_BKHA.unsqueeze(-1), falsify(clean_BKHAD, key_B, radix_AD), clean_BKHAD)

    # === 5. The state, with noise indices drawn anew, and what is asked ===
    def rows(x_BKHA: Tensor) -> Tensor:
        return layout.fold(x_BKHA.flatten(0, 1))

    digits_BNSD, shown_BNSD = rows(clean_BKHAD), rows(shown_BKHAD)
    state = revealed(shown_BNSD, rows(known_BKHA), rows(provenance_BKHA))
    key_BK = randomness.fold(key_B[:, None], torch.arange(COPIES, device=device)).flatten()
    real_BNS1 = rows((~pad_BHA).unsqueeze(1).expand_as(known_BKHA)).unsqueeze(-1)
    visible_BNSD = state.visible_BNSD()
    wrong_BNSD = visible_BNSD & (shown_BNSD != digits_BNSD)
    asked_BNSD = ~visible_BNSD & real_BNS1 & ~wrong_BNSD.any(-1, keepdim=True)
    judged_BNSD = visible_BNSD & real_BNS1 & (state.provenance_BNS != Provenance.COMMITTED).unsqueeze(-1)
    noisy_BK = noisy_copy(batch, device).flatten() & (uniform("noisy") < programs.noisy).repeat_interleave(COPIES)
    return Corrupted(redraw(state, key_BK, noise_indices, noisy_BK), digits_BNSD, asked_BNSD, judged_BNSD, wrong_BNSD)


def noisy_copy(batch: int, device: torch.device) -> Tensor:
    """bool (B, K): the copies that may have a noise index, one of every other sample, first and second in turn."""
    sample_B1 = processes.places(batch).to(device).unsqueeze(1)
    return (sample_B1 % 2 == 0) & (sample_B1 // 2 % COPIES == torch.arange(COPIES, device=device))


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
