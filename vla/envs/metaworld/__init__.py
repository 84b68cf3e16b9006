# SPDX-License-Identifier: Apache-2.0
"""The fifty tasks of Meta-World v3: a Sawyer arm that reaches, pushes, opens, turns and inserts, seen by one camera."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla.envs.metaworld.env import MetaWorldEnv

__all__ = ["MetaWorldEnv"]


def __getattr__(name: str) -> Any:
    # Lazy, so that reading the task table does not import the simulator.
    if name == "MetaWorldEnv":
        from vla.envs.metaworld.env import MetaWorldEnv

        return MetaWorldEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
