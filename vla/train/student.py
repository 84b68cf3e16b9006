# SPDX-License-Identifier: Apache-2.0
"""A student and what it minimises: a session of training in which a teacher says what the actions are.

What the teacher sees, the student sees: words and pictures are read with the teacher's weights, once for both.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, State, all_masked, unmasked
from vla.canvas.lattice import Provenance
from vla.diffusion import Sampling, total_loss
from vla.diffusion.corruption import committed
from vla.diffusion.distillation import distillation_losses, taught
from vla.model import LatticeModel
from vla.model.transformer import Given
from vla.train.session import Session, some_rows

if TYPE_CHECKING:
    from vla.train.distill import DistillConfig

SHARED = ("vision", "condition", "condition_norm")
"""What the student does not learn anew: how it looks at pictures."""


@dataclass
class Distillation(Session):
    """A session whose losses are about what the teacher decides."""

    teacher: LatticeModel | None = None
    config: "DistillConfig | None" = None

    def losses(
        self, batch: dict[str, Any], step: int, model: LatticeModel | None = None, part: tuple[int, int] = (0, 1)
    ) -> dict[str, Tensor]:
        """As `Session.losses`. Who decides what is a function of (seed, step, place in the batch), too."""
        teacher, config, student = self.teacher, self.config, model or self.model
        assert teacher is not None and config is not None
        key_B = self.keys(batch, step, part)
        rows = self.rows(some_rows(batch, part))
        given = self.committed(rows.executed_BHA, rows.ended_BH, key_B, config.committed)
        seen: dict[Segment, Given] = {
            Segment.INSTRUCTION: self.vocabulary.tokens(rows.words_BL),
            Segment.OBSERVATION: rows.observed,
        }
        with self.autocast():
            with torch.no_grad():
                teaching = Sampling(config.teacher_steps, config.temperature)
                digits_BNSD = taught(teacher, teacher.read(None, seen), key_B, teaching, given)
            context = student.read(None, seen)
            digits = distillation_losses(
                student, context, digits_BNSD, given, key_B, config.num_inference_steps, config.candidates
            )
        names = ["loss_coarse", "loss_fine", *(f"loss_digit_{d}" for d in range(2, len(digits)))]
        return {"loss": total_loss(digits), **dict(zip(names, digits, strict=False))}

    def committed(self, actions_BHA: Tensor, ended_BH: Tensor, key_B: Tensor, share: float) -> State:
        """In a share of the rows the first actions are what was executed; in the others nothing is known."""
        layout, tokenizer = self.model.config.layout, self.tokenizers.action
        if not tokenizer.time_aligned:
            return all_masked(layout.shape(len(key_B)), layout.digits, self.device)
        digits_BHAD = tokenizer.encode(actions_BHA)
        longest = self.recipe.corruption.max_prefix
        known_BHA, _ = committed(key_B, layout.horizon, layout.dims, layout.digits, "prefix", longest)
        has_B = randomness.uniform(key_B, "prefix") < share
        known_BHA = known_BHA * has_B[:, None, None] * (~ended_BH).unsqueeze(-1)
        provenance_BHA = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
        return unmasked(layout.fold(digits_BHAD), layout.fold(known_BHA), layout.fold(provenance_BHA))


def student_of(teacher: LatticeModel, noise_indices: int, seed: int = 0) -> LatticeModel:
    """The teacher's network for actions alone, with its weights and, if it has but the plain mask, `noise_indices`."""
    old = teacher.config
    indices = old.noise_indices if old.noise_indices > 1 else noise_indices
    nothing: dict[str, Any] = {"plan_length": 0, "codes": 0, "code_radices": (), "waypoints": 0, "goals": False}
    config = replace(old, noise_indices=indices, given_actions=False, **nothing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = LatticeModel(config)
    weights, mine = teacher.state_dict(), student.state_dict()
    if indices != old.noise_indices:  # the new masks begin as the plain one, and something of their own
        for name in (n for n in mine if n.startswith("embeddings.") and n.endswith(".table")):
            dims = student.embeddings[name.split(".")[1]].layout.dims
            rows = mine[name].unflatten(0, (dims, -1)).clone()
            known = weights[name].unflatten(0, (dims, -1))
            plain = known.shape[1] - 2  # then: "no noise, all known"
            rows[:, :plain] = known[:, :plain]
            rows[:, plain + 1 : -1] += known[:, plain, None]
            rows[:, plain], rows[:, -1] = known[:, plain], known[:, -1]
            weights = {**weights, name: rows.flatten(0, 1)}
    student.load_state_dict({name: weights[name] for name in mine})
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in SHARED)
    return student
