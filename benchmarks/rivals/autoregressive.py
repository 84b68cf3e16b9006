# SPDX-License-Identifier: Apache-2.0
"""The rival that writes one token after the other: our network as a causal decoder (vla/bench/speed_paths.py).

Shapes: B samples, N = H * A positions, D digits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rivals.fit import read
from vla.bench.speed_paths import Autoregressive
from vla.canvas import Segment, unmasked
from vla.canvas.query import Question
from vla.diffusion import Corrupted, Sample, Sampling, digit_losses, total_loss
from vla.diffusion.sampler import Samples
from vla.policy import Answer, Policy
from vla.policy.decoding import answer
from vla.policy.encoding import one_shape
from vla.train.session import Session


def loss(s: Session, model: nn.Module, batch: dict[str, Any], step: int, total: int) -> Tensor:
    """Cross-entropy of the tokens within the episode given the true ones before them, weighed as ours; and the aid."""
    assert isinstance(model, Autoregressive)
    layout = model.config.layout
    digits_BHAD = s.tokenizers.action.encode(torch.from_numpy(batch["actions"]))
    digits_BNSD = layout.fold(digits_BHAD)
    real_BH = torch.from_numpy(~batch["is_pad"])
    asked_BNSD = layout.fold(real_BH[:, :, None, None].expand_as(digits_BHAD))
    blind = step < min(s.recipe.full_steps, total // 2)  # a short run must not end before it has read a token
    with s.autocast():
        context, aid = read(s, model, batch, step)
        logits = model.teach(context, digits_BNSD, blind)
    return total_loss(digit_losses(logits, Corrupted(unmasked(digits_BNSD), digits_BNSD, asked_BNSD))) + aid


class AutoregressivePolicy(Policy):
    """Acts with an `Autoregressive` model. It knows the query `policy` alone: nothing can be painted into."""

    model: Autoregressive

    @torch.inference_mode()
    def _answer(
        self, questions: Sequence[Question], keys: Sequence[tuple[int, int]], sampling: Sampling, *more: Any
    ) -> Answer:
        query = one_shape(questions, keys)
        written = self.model.write(self.model.read(None, self.encoder.given(questions, query)))
        state = unmasked(written.digits_BND.unsqueeze(2))
        sure_BNS = written.confidence_BN.unsqueeze(2)
        found = Samples({Segment.ACTION: Sample(state, sure_BNS, sure_BNS, written.offset_BN.unsqueeze(2))})
        return answer(self.model, self.tokenizers, sampling, found, questions, None)
