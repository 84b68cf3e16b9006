# SPDX-License-Identifier: Apache-2.0
"""A student and what it minimises: a session of training in which a teacher says what the actions are.

What the teacher sees, the student sees: words and pictures are read with the teacher's weights, once for both.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla import processes, randomness
from vla.canvas import Provenance, State, hidden, revealed
from vla.diffusion import Sampling, total_loss
from vla.diffusion.distillation import distillation_losses, taught
from vla.model import LatticeModel
from vla.train.session import Session

if TYPE_CHECKING:
    from vla.train.distill import DistillConfig

SHARED = ("word", "word_place", "reader", "read_norm", "vision")
"""What the student does not learn anew."""


@dataclass
class Distillation(Session):
    """A session whose losses are about what the teacher decides."""

    teacher: LatticeModel | None = None
    config: "DistillConfig | None" = None

    def losses(self, batch: dict[str, Any], step: int, model: LatticeModel | None = None) -> dict[str, Tensor]:
        """As `Session.losses`. Who decides what is a function of (seed, step, place in the batch), too."""
        teacher, config, student = self.teacher, self.config, model or self.model
        assert teacher is not None and config is not None
        key_B = randomness.fold(self.seed, step, processes.places(len(batch["actions"]))).to(self.device)
        images, state_BS, words_BL = self.inputs(batch)
        given = self.committed(batch, key_B, config.committed)
        with self.autocast():
            with torch.no_grad():
                seen_BTW = teacher.look(images, words_BL)
                teaching = Sampling(config.teacher_evaluations, config.temperature)
                digits_BNSD = taught(teacher, teacher.encode(seen_BTW, state_BS, words_BL), key_B, teaching, given)
            prefix = student.encode(seen_BTW, state_BS, words_BL)
            digits = distillation_losses(
                student, prefix, digits_BNSD, given, key_B, config.evaluations, config.candidates
            )
        names = ["loss_coarse", "loss_fine", *(f"loss_digit_{d}" for d in range(2, len(digits)))]
        return {"loss": total_loss(digits), **dict(zip(names, digits, strict=False))}

    def committed(self, batch: dict[str, Any], key_B: Tensor, share: float) -> State:
        """In a share of the rows the first 1 to 4 actions are the demonstrator's; in the others nothing is known."""
        layout, tokenizer = self.model.config.layout, self.tokenizers.action
        if not tokenizer.time_aligned:
            return hidden((len(key_B), layout.positions, layout.sub_tokens), layout.digits, self.device)
        digits_BHAD = tokenizer.encode(torch.from_numpy(batch["actions"])).to(self.device)
        steps_H = torch.arange(layout.horizon, device=self.device)
        most = min(4, max(layout.horizon - 1, 1))
        length_B = 1 + randomness.integers(key_B, "prefix length", most)
        length_B = torch.where(randomness.uniform(key_B, "prefix") < share, length_B, 0)
        real_BH = torch.from_numpy(~batch["is_pad"]).to(self.device)
        known_BH = ((steps_H < length_B[:, None]) & real_BH).long() * layout.digits
        known_BHA = known_BH.unsqueeze(-1).expand(digits_BHAD.shape[:-1])
        provenance_BHA = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
        return revealed(layout.fold(digits_BHAD), layout.fold(known_BHA), layout.fold(provenance_BHA))


def student_of(teacher: LatticeModel, noise_indices: int, seed: int = 0) -> LatticeModel:
    """The teacher's network for actions alone, with its weights and, if it has but the plain mask, `noise_indices`."""
    old = teacher.config
    indices = old.noise_indices if old.noise_indices > 1 else noise_indices
    nothing: dict[str, Any] = {"plan_length": 0, "word_radices": (), "codes": 0, "code_radices": ()}
    config = replace(old, noise_indices=indices, quality=False, ahead=0, **nothing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = LatticeModel(config)
    weights, mine = teacher.state_dict(), student.state_dict()
    if indices != old.noise_indices:  # the new masks begin as the plain one, and something of their own
        dims = old.layout.dims
        rows = mine["canvas.table"].unflatten(0, (dims, -1)).clone()
        known = weights["canvas.table"].unflatten(0, (dims, -1))
        plain = known.shape[1] - 2  # then: "no noise, all known"
        rows[:, :plain] = known[:, :plain]
        rows[:, plain + 1 : -1] += known[:, plain, None]
        rows[:, plain], rows[:, -1] = known[:, plain], known[:, -1]
        weights = {**weights, "canvas.table": rows.flatten(0, 1)}
    student.load_state_dict({name: weights[name] for name in mine})
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in SHARED)
    return student
