# SPDX-License-Identifier: Apache-2.0
"""Our environments as LeRobot's: `--env.type=tabletop` and `--env.type=metaworld_lattice`.

    lerobot-eval --policy.path=... --env.type=tabletop --env.task=tier1 --eval.n_episodes=20

`task` is a task, several separated by commas, or a suite. LeRobot's seeds begin at 1000; ours for evaluation end at
99,999, so scenes are never those of a recording.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import FreezeAfterEpisodeEnd
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from vla.envs import registry


class SeededByTheVector(gymnasium.Wrapper):
    """Our environments want a seed at every reset; gymnasium's vectors reset ended ones without.

    What follows such a reset is thrown away by LeRobot's rollout, so any scene will do: it is the next seed's.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._last = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._last = self._last + 1 if seed is None else int(seed)
        own = {key: value for key, value in (options or {}).items() if key in ("task", "instruction")}
        return self.env.reset(seed=self._last, options=own or None)

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


def make_one(env: str, task: str, image_size: int, cameras: tuple[str, ...]) -> gymnasium.Env:
    """One environment, as a vector of them wants it."""
    made = registry.make_env(env, task=task, image_size=image_size, cameras=cameras)
    return FreezeAfterEpisodeEnd(SeededByTheVector(made))


@dataclass
class LatticeEnvConfig(EnvConfig):
    """What both have in common."""

    image_size: int = 64
    """Side of the pictures, pixels."""
    cameras: list[str] = field(default_factory=list)
    """Cameras to draw; none: the environment's usual ones."""

    ENV = ""
    STATES, ACTIONS = 4, 4

    def __post_init__(self) -> None:
        """ValueError for a task or suite that does not exist."""
        self.cameras = list(self.cameras) or list(registry.CAMERAS[self.ENV])
        self.tasks()
        square = (self.image_size, self.image_size, 3)
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (self.ACTIONS,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (self.STATES,)),
            **{f"pixels/{camera}": PolicyFeature(FeatureType.VISUAL, square) for camera in self.cameras},
        }
        self.features_map = {
            "action": ACTION,
            "agent_pos": OBS_STATE,
            **{f"pixels/{camera}": f"{OBS_IMAGES}.{camera}" for camera in self.cameras},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "cameras": tuple(self.cameras)}

    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that `task` stands for."""
        suites = registry.suites(self.ENV)
        if self.task in suites:
            return suites[self.task]
        known = {task for tasks in suites.values() for task in tasks}
        names = tuple(name.strip() for name in str(self.task or "").split(",") if name.strip())
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"'{self.type}' has no task or suite {', '.join(unknown)}; suites: {', '.join(suites)}; "
                f"tasks: {', '.join(sorted(known))}"
            )
        if not names:
            raise ValueError(f"expected --env.task, a task or one of the suites {', '.join(suites)}")
        return names

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """{suite: {number: vector of n_envs environments}}, a vector for each task.

        All in this process, whatever `use_async_envs` says: a process for each of them takes longer to start, and a
        gigabyte to run, than an environment takes to step. On many cores, `vla eval` shares episodes among processes.
        """
        made: dict[int, Any] = {}
        for number, task in enumerate(self.tasks()):
            one: list[Callable[[], gymnasium.Env]] = [
                partial(make_one, self.ENV, task, self.image_size, tuple(self.cameras)) for _ in range(n_envs)
            ]
            mode = gymnasium.vector.AutoresetMode.NEXT_STEP
            made[number] = gymnasium.vector.SyncVectorEnv(one, autoreset_mode=mode)
        return {self.type: made}


@EnvConfig.register_subclass("tabletop")
@dataclass
class TabletopEnv(LatticeEnvConfig):
    """The tabletop."""

    task: str | None = "tier1"
    fps: int = 10

    ENV = "tabletop"


@EnvConfig.register_subclass("metaworld_lattice")
@dataclass
class MetaworldLatticeEnv(LatticeEnvConfig):
    """Meta-World through our environment: fast pictures, a right first frame, true seeds."""

    task: str | None = "mt10"
    fps: int = 80
    image_size: int = 96

    ENV = "metaworld"
