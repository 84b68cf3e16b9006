# SPDX-License-Identifier: Apache-2.0
"""Does the network know which of its tokens are false, and can it mend them?

15 % of the tokens of true, held-out chunks are falsified as in training (the coarse digit moves to a neighbour or
anywhere, the fine one is redrawn). Then one evaluation says which tokens are doubted, and one fills them again.
Baseline: confidence without the head, the probability that the digit head gives to the token that is shown.
"""

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import climb, revealed
from vla.diffusion.programs import falsify
from vla.diffusion.sampler import Sample, Sampling, fill, take_back
from vla.model import LatticeModel, Prefix

SHARE = 0.15
DOUBT = 0.8
"""What is true with less than this probability is taken back: a false alarm costs little, it is filled again."""


@torch.no_grad()
def revision(
    model: LatticeModel, prefix: Prefix, digits_BHAD: Tensor, real_BH: Tensor, key_B: Tensor
) -> dict[str, float]:
    """{"auroc", "repair", "harm", "auroc_confidence", "repair_confidence"}.

    auroc: of "this token is true" on all real tokens. repair: falsified tokens whose value is within half a coarse bin
    of the true one after the two evaluations (before: how many are by chance); repair_digit: whose coarse digit is the
    true one; repair_oracle: as repair, if somebody said which tokens are false. harm: true tokens whose value is not
    within half a coarse bin, afterwards. `real_BH`: bool, not padding.
    """
    layout = model.config.layout
    radix_AD = model.head.allowed_ADV.sum(-1)
    other_BHAD = falsify(digits_BHAD.unsqueeze(1), key_B, radix_AD).squeeze(1)
    chosen_BHA = randomness.uniform(key_B, "inject", *digits_BHAD.shape[1:3]) < SHARE
    shown_BHAD = torch.where(chosen_BHA.unsqueeze(-1), other_BHAD, digits_BHAD)
    real_BNS = layout.fold(real_BH.unsqueeze(-1).expand(chosen_BHA.shape))
    digits, shown = layout.fold(digits_BHAD), layout.fold(shown_BHAD)
    false_BNS = (shown != digits).any(-1) & real_BNS
    true_BNS = ~(shown != digits).any(-1) & real_BNS
    state = revealed(shown)
    zero = torch.zeros(false_BNS.shape)
    now = Sample(state, zero + 1, zero, 0)
    h = model.decode(prefix, state)
    again = model.head(h, shown)
    log_p = [x.log_softmax(-1).gather(-1, shown[..., d : d + 1]).squeeze(-1) for d, x in enumerate(again)]
    confidence_BNS = torch.stack(log_p).sum(0)
    result = {"auroc_confidence": auroc(confidence_BNS[true_BNS], confidence_BNS[false_BNS])}

    place_D = torch.tensor([layout.base ** -(d + 1) for d in range(layout.digits)])

    def close(canvas: Tensor) -> Tensor:
        return ((canvas - digits) * place_D).sum(-1).abs() <= 0.5 / layout.base

    result["before"] = close(shown)[false_BNS].double().mean().item()

    def mended(doubted: Sample, name: str) -> None:
        filled, _ = fill(model, prefix, doubted, key_B, Sampling(1), 0.0, [1.0] * layout.digits)
        canvas = filled.state.digits_BNSD
        result[f"repair{name}"] = close(canvas)[false_BNS].double().mean().item()
        result[f"repair_digit{name}"] = (canvas == digits)[..., 0][false_BNS].double().mean().item()
        result[f"harm{name}"] = (~close(canvas))[true_BNS].double().mean().item()

    oracle = climb(state, layout.digits * false_BNS.long(), suspect=True)
    mended(Sample(oracle, now.confidence_BNS, now.fine_offset_BNS, 0), "_oracle")

    # Without the head: as many tokens as are false, the least confident ones first, go to the top of the lattice.
    threshold = confidence_BNS[real_BNS].kthvalue(max(1, int(false_BNS.sum()))).values
    taken = climb(state, layout.digits * ((confidence_BNS <= threshold) & real_BNS).long(), suspect=True)
    mended(Sample(taken, now.confidence_BNS, now.fine_offset_BNS, 0), "_confidence")
    if model.quality is not None:
        quality_BNS = model.quality(h).sigmoid().prod(-1)
        result["auroc"] = auroc(quality_BNS[true_BNS], quality_BNS[false_BNS])
        mended(take_back(model, prefix, now, DOUBT), "")
    return result


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive scores above a negative (ties count half): the Mann-Whitney statistic."""
    from scipy.stats import mannwhitneyu

    if not len(positive) or not len(negative):
        raise ValueError(f"expected positives and negatives, got {len(positive)} and {len(negative)}")
    return float(mannwhitneyu(positive.numpy(), negative.numpy()).statistic / (len(positive) * len(negative)))
