# SPDX-License-Identifier: Apache-2.0
"""`vla distill`: a student of one or two evaluations that decides as a trained checkpoint does in many.

The loop is that of `vla train`, with its checkpoints, --resume and metrics; the session asks for another loss
(vla/diffusion/distillation.py). What the teacher sees, the student sees: words and pictures are read with the teacher's
weights, once for both. Only actions are learnt; what else a unified checkpoint knows is left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla import processes, randomness
from vla.canvas import Provenance, State, hidden, revealed
from vla.diffusion import Sampling, total_loss
from vla.diffusion.distillation import distillation_losses, taught
from vla.model import LatticeModel
from vla.train.session import Session

SHARED = ("word", "word_place", "reader", "read_norm", "vision")
"""What the student does not learn anew."""


@dataclass(frozen=True)
class DistillConfig:
    """Teach a student of one or two evaluations what a checkpoint decides in many."""

    teacher: str
    """Checkpoint folder, or the name of a shipped one."""
    dataset: str | tuple[str, ...]
    """Observations to decide about; their actions are only used as committed ones. Folders or hub repository ids."""
    out: Path = Path("runs/distill")
    """Run folder: checkpoints/, metrics.jsonl, tensorboard/."""
    evaluations: int = 1
    """Of the student: 1 or 2."""
    teacher_evaluations: int = 8
    temperature: float = 1.0
    """Of the teacher: 1 teaches all that it would do, 0 what it does most."""
    noise_indices: int = 16
    """How many ways of deciding a student can tell apart; 1: one. A teacher that has some keeps its number."""
    candidates: int = 8
    """Noise indices that are looked at for each chunk, to learn from the one that explains it best."""
    committed: float = 0.25
    """Of the samples, in which the first 1 to 4 actions are given (real-time chunking)."""
    steps: int = 2000
    minutes: float | None = None
    """Upper limit of the wall-clock."""
    batch_size: int = 64
    lr: float = 1e-3
    """Peak of a cosine schedule with linear warm-up, AdamW."""
    holdout: float = 0.02
    """Fraction of episodes kept for validation."""
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    """CPU threads of torch; 0: all cores."""
    resume: bool = False
    """Continue from the newest complete checkpoint in `out`."""
    overwrite: bool = False
    """Delete an existing run folder first."""
    save_interval: int = 500
    """Steps between checkpoints."""


@dataclass
class Distillation(Session):
    """A session whose losses are about what the teacher decides."""

    teacher: LatticeModel | None = None
    config: DistillConfig | None = None

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


def distill(config: DistillConfig) -> dict[str, Any]:
    """Write a checkpoint of the student. Returns what `train` returns.

    Raises ValueError for settings that cannot be, or a dataset of another robot.
    """
    from vla.policy import Policy
    from vla.recipes import Recipe
    from vla.train import loop, setup

    if not 1 <= config.evaluations <= 2 or config.noise_indices < 1 or config.candidates < 1:
        raise ValueError(
            "expected 1 or 2 evaluations of the student and at least 1 noise index and candidate, got "
            f"{config.evaluations}, {config.noise_indices} and {config.candidates}"
        )
    policy = Policy.load(config.teacher)
    student = student_of(policy.model, config.noise_indices, config.seed)
    tokenizers = replace(policy.tokenizers, words=None, image=None)
    indices = student.config.noise_indices
    recipe = Recipe(
        image_size=policy.image_size,
        horizon=policy.horizon,
        n_action_steps=policy.n_action_steps,
        noise_indices=indices,
        sampling=Sampling(config.evaluations, noise=indices > 1),
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        holdout=config.holdout,
        ema=0.99,
    )

    def build(settings: Any, recipe: Recipe, device: torch.device) -> Session:
        session = setup.build(settings, recipe, device, (student, tokenizers))
        policy.check_names(session.cache)
        return Distillation(**vars(session), teacher=policy.model.requires_grad_(False).to(device), config=config)

    settings = loop.TrainConfig(
        dataset=config.dataset,
        out=config.out,
        recipe="distilled",
        minutes=config.minutes,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        resume=config.resume,
        overwrite=config.overwrite,
        save_interval=config.save_interval,
    )
    return loop.run(settings, recipe, build)


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
