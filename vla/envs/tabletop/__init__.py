# SPDX-License-Identifier: Apache-2.0
"""A small tabletop where a floating hand reaches, pushes, lifts, places and stacks blocks named in words."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla.envs.tabletop.env import TabletopEnv

__all__ = ["TabletopEnv"]


def __getattr__(name: str) -> Any:
    # Lazy, so that reading the task table does not import the simulator.
    if name == "TabletopEnv":
        from vla.envs.tabletop.env import TabletopEnv

        return TabletopEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
