# SPDX-License-Identifier: Apache-2.0
"""What LeRobot imports to find policy type `lattice`, the environments `tabletop` and `metaworld_lattice`, and the
simulated robot `tabletop`.

LeRobot looks for installed distributions whose name begins with `lerobot_policy_` and imports a module of that name.
Everything is in `vla.lerobot`.
"""

from vla.lerobot.configuration_lattice import LatticeConfig
from vla.lerobot.envs import MetaworldLatticeEnv, TabletopEnv
from vla.lerobot.tabletoprobot import TabletopRobotConfig

__all__ = ["LatticeConfig", "MetaworldLatticeEnv", "TabletopEnv", "TabletopRobotConfig"]
