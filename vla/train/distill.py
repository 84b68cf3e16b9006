# SPDX-License-Identifier: Apache-2.0
"""`vla distill`: a student of one or two denoising steps that decides as a trained checkpoint does in many.

The loop is that of `vla train`, with its checkpoints, --resume and metrics; the session asks for another loss
(vla/train/student.py). Only actions are learnt; what else a unified checkpoint knows is left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vla.train.session import Session


@dataclass(frozen=True)
class DistillConfig:
    """Teach a student of one or two denoising steps what a checkpoint decides in many."""

    teacher: str
    """Checkpoint folder, or the name of a shipped one."""
    dataset: str | tuple[str, ...]
    """Observations to decide about; their actions are only used as committed ones. Folders or hub repository ids."""
    out: Path = Path("runs/distill")
    """Run folder: checkpoints/, metrics.jsonl, tensorboard/."""
    num_inference_steps: int = 1
    """Denoising steps of the student: 1 or 2."""
    teacher_steps: int = 8
    """Denoising steps of the teacher."""
    temperature: float = 1.0
    """Of the teacher: 1 teaches all that it would do, 0 what it does most."""
    noise_indices: int = 16
    """How many ways of deciding a student can tell apart; 1: one. A teacher that has some keeps its number."""
    candidates: int = 8
    """Noise indices that are looked at for each chunk, to learn from the one that explains it best."""
    committed: float = 0.25
    """Of the samples, in which the first actions are given (real-time chunking)."""
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


def distill(config: DistillConfig) -> dict[str, Any]:
    """Write a checkpoint of the student. Returns what `train` returns.

    Raises ValueError for settings that cannot be, or a dataset of another robot.
    """
    from vla.diffusion import Sampling
    from vla.policy import Policy
    from vla.recipes import Recipe
    from vla.train import loop, setup
    from vla.train.student import Distillation, student_of

    if not 1 <= config.num_inference_steps <= 2 or config.noise_indices < 1 or config.candidates < 1:
        raise ValueError(
            "expected 1 or 2 denoising steps of the student and at least 1 noise index and candidate, got "
            f"{config.num_inference_steps}, {config.noise_indices} and {config.candidates}"
        )
    policy = Policy.load(config.teacher)
    student = student_of(policy.model, config.noise_indices, config.seed)
    tokenizers = replace(policy.tokenizers, image=None, waypoints=None)
    indices = student.config.noise_indices
    recipe = Recipe(
        image_size=policy.image_size,
        horizon=policy.horizon,
        n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps,
        noise_indices=indices,
        sampling=Sampling(config.num_inference_steps, noise=indices > 1),
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        holdout=config.holdout,
        ema=0.99,
    )

    def build(settings: Any, recipe: Recipe, device: "torch.device") -> "Session":
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
