# SPDX-License-Identifier: Apache-2.0
"""A trained policy of LeRobot as evaluation wants one: observations and keys in, chunks with units out.

It has no memory: queues are emptied before each call, and a policy that wants several observation steps gets the same
one several times. A row's noise is a function of its key. A policy that takes its noise as an argument works on several
rows at once; one that draws it inside is called for one row at a time, after seeding torch with the row's key.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rivals.lerobot_configs import register_backbone
from benchmarks.rivals.lerobot_data import ACTION, Inputs, SentenceCode
from vla import randomness
from vla.policy import Observation

ABOUT = "inputs.json"
TAKES_NOISE = ("diffusion",)
DRAWS_NOISE = ("vqbet", "multi_task_dit")
OBS_IMAGES = "observation.images"


@dataclass(frozen=True)
class Robot:
    """What a dataset says of the robot, and the recipe of the chunk."""

    cameras: tuple[str, ...]
    image_size: int
    state_names: list[str]
    action_names: list[str]
    horizon: int
    n_action_steps: int


class LeRobotContender:
    """See the module docstring; the members are those of `vla.eval.centre.Policy`."""

    def __init__(self, policy: Any, pre: Any, post: Any, robot: Robot, code: SentenceCode | None, rows: int | None):
        """`pre`, `post`: its processors. `rows`: of a call of the policy, padded; None: as many as observations."""
        self.policy, self.pre, self.post, self.robot = policy.eval(), pre, post, robot
        self.inputs = Inputs(robot.cameras, (), code, stacked=False)
        self.kind = policy.config.type
        self.rows = 1 if self.kind in DRAWS_NOISE else rows
        self.cameras, self.image_size = robot.cameras, robot.image_size
        self.state_names, self.action_names = robot.state_names, robot.action_names
        self.horizon, self.n_action_steps = robot.horizon, robot.n_action_steps

    @torch.inference_mode()
    def act(self, observations: list[Observation], keys: list[tuple[int, int]]) -> np.ndarray:
        """float32 (B, H, A), dataset units. ValueError for another number of keys, or a camera that is missing."""
        if len(observations) != len(keys):
            raise ValueError(f"expected one key for each of {len(observations)} observations, got {len(keys)}")
        rows, chunks = self.rows or len(observations), []
        for start in range(0, len(observations), rows):
            part, of = observations[start : start + rows], keys[start : start + rows]
            filling = rows - len(part)
            chunks.append(self._chunks(part + part[-1:] * filling, of + of[-1:] * filling)[: len(part)])
        return np.concatenate(chunks)

    def _chunks(self, observations: list[Observation], keys: list[tuple[int, int]]) -> np.ndarray:
        for o in observations:
            if missing := set(self.cameras) - set(o.images):
                raise ValueError(f"the policy needs cameras {list(self.cameras)}; missing {sorted(missing)}")
        images = {c: np.stack([o.images[c] for o in observations]) for c in self.cameras}
        state_BS = np.stack([np.asarray(o.state, np.float32) for o in observations])
        batch = self.pre(self.inputs.observation(images, state_BS, [o.instruction for o in observations]))
        batch.pop(ACTION, None)  # the processor puts None there, and some policies take it for an observation
        self.policy.reset()
        if hasattr(self.policy, "_queues"):  # what select_action does before it asks for a chunk
            from lerobot.policies.utils import populate_queues

            batch[OBS_IMAGES] = torch.stack([batch[key] for key in self.policy.config.image_features], dim=-4)
            self.policy._queues = populate_queues(self.policy._queues, batch)
        seeds = [seed_of(key) for key in keys]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            noise = {"noise": self._noise(seeds)} if self.kind in TAKES_NOISE else {}
            chunk_BHA = self.post(self.policy.predict_action_chunk(batch, **noise))
        return chunk_BHA.float().numpy()

    def _noise(self, seeds: list[int]) -> Tensor:
        """Standard normal, float (B, H, A)."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.randn(self.horizon, len(self.action_names), generator=g) for g in generators])


def seed_of(key: tuple[int, int]) -> int:
    """A seed for torch, >= 0, of (episode key, step)."""
    return int(randomness.fold(*key)) & (2**63 - 1)


def save(folder: Path, policy: Any, pre: Any, post: Any, robot: Robot, code: SentenceCode | None) -> None:
    """Write everything into `folder` (within `checkpoint.write_folder`), in LeRobot's own form, and what it lacks."""
    for part in (policy, pre, post):
        part.save_pretrained(folder)
    about = {"robot": vars(robot), "pairs": code.pairs if code is not None else None}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def load(folder: Path, rows: int | None) -> LeRobotContender:
    """The contender that `save` wrote."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    register_backbone()
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    pre, post = make_pre_post_processors(policy_cfg=config, pretrained_path=str(folder))
    about = json.loads((folder / ABOUT).read_text())
    robot = Robot(**{**about["robot"], "cameras": tuple(about["robot"]["cameras"])})
    code = SentenceCode(tuple((place, word) for place, word in about["pairs"])) if about["pairs"] else None
    return LeRobotContender(policy, pre, post, robot, code, rows)
