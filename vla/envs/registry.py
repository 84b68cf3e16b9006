# SPDX-License-Identifier: Apache-2.0
"""Which environments there are, and which tasks form a suite: read by recorder, evaluator and CLI.

Simulators are imported only when one of their environments is made, so that a `--help` stays fast.
"""

import difflib
import importlib
from typing import Any

ENVS: dict[str, str] = {
    "tabletop": "vla.envs.tabletop.env:TabletopEnv",
    "tabletop_state": "vla.envs.tabletop.state_env:TabletopStateEnv",
    "metaworld": "vla.envs.metaworld.env:MetaWorldEnv",
}
"""Environment id -> "module:class"."""

CAMERAS: dict[str, tuple[str, ...]] = {
    "tabletop": ("front",),
    "tabletop_state": (),
    "metaworld": ("corner2_mt50",),
}
"""Environment id -> the cameras that are recorded unless others are asked for."""

_SUITES: dict[str, str] = {
    "tabletop": "vla.envs.tabletop.tasks:SUITES",
    "tabletop_state": "vla.envs.tabletop.tasks:SUITES",
    "metaworld": "vla.envs.metaworld.tasks:SUITES",
}

_TIERS: dict[str, str] = {
    "tabletop": "vla.envs.tabletop.tasks:TIERS",
    "tabletop_state": "vla.envs.tabletop.tasks:TIERS",
    "metaworld": "vla.envs.metaworld.tasks:TIERS",
}


def _resolve(table: dict[str, str], env: str) -> Any:
    if env not in table:
        near = difflib.get_close_matches(env, table, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown environment {env!r}; did you mean {near[0]!r}? There are: {', '.join(sorted(table))}"
        )
    module, name = table[env].split(":")
    return getattr(importlib.import_module(module), name)


def make_env(env: str, **kwargs: Any) -> Any:
    """Make the gymnasium.Env called `env`; `kwargs` go to its constructor. ValueError if there is none."""
    return _resolve(ENVS, env)(**kwargs)


def suites(env: str) -> dict[str, tuple[str, ...]]:
    """Return suite name -> task names of an environment. ValueError if there is no such environment."""
    return dict(_resolve(_SUITES, env))


def tiers(env: str) -> dict[str, tuple[str, ...]]:
    """Return tier of difficulty -> task names: every task is in one. ValueError if there is no such environment."""
    return {name: tuple(tasks) for name, tasks in _resolve(_TIERS, env).items()}
