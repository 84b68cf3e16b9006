# SPDX-License-Identifier: Apache-2.0
"""Which environments there are, and which tasks form a suite: read by recorder, evaluator and CLI.

Simulators are imported only when one of their environments is made, so that a `--help` stays fast.
"""

import difflib
import importlib
from typing import Any

from vla.envs import perturbation

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

PERTURBATIONS: dict[str, tuple[str, ...]] = {
    "tabletop": perturbation.PERTURBATIONS,
    "tabletop_state": ("action-delay", "held-out-positions"),
    "metaworld": (*perturbation.VISUAL, "action-delay"),
}
"""Environment id -> what `make_env(env, perturbation=...)` can make different about its episodes."""


def _resolve(table: dict[str, str], env: str) -> Any:
    if env not in table:
        near = difflib.get_close_matches(env, table, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown environment {env!r}; did you mean {near[0]!r}? There are: {', '.join(sorted(table))}"
        )
    module, name = table[env].split(":")
    return getattr(importlib.import_module(module), name)


def make_env(env: str, **kwargs: Any) -> Any:
    """Make the gymnasium.Env called `env`; `kwargs` go to its constructor. ValueError if there is none.

    "perturbation" is one of PERTURBATIONS[env], or None: ValueError, with the nearest name, for any other.
    """
    made = _resolve(ENVS, env)
    if perturbation.check_perturbation(kwargs.get("perturbation"), PERTURBATIONS[env], repr(env)) != "action-delay":
        return made(**kwargs)
    from vla.envs.delay import DelayedActions

    return DelayedActions(made(**kwargs | {"perturbation": None}))


def suites(env: str) -> dict[str, tuple[str, ...]]:
    """Return suite name -> task names of an environment. ValueError if there is no such environment."""
    return dict(_resolve(_SUITES, env))


def tiers(env: str) -> dict[str, tuple[str, ...]]:
    """Return tier of difficulty -> task names: every task is in one. ValueError if there is no such environment."""
    return {name: tuple(tasks) for name, tasks in _resolve(_TIERS, env).items()}
