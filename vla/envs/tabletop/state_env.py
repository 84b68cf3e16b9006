# SPDX-License-Identifier: Apache-2.0
"""The tabletop without pixels, for ablations of everything that is not vision.

The state says where the things are that the sentence is about. It reads the goal, not the words: what is
measured here is how actions are modelled, and nothing about grounding.
"""

import gymnasium
import numpy as np

from vla.envs.tabletop.env import TabletopEnv
from vla.envs.tabletop.scene import N_BLOCKS
from vla.envs.tabletop.tasks import DIRECTIONS

_NAMED = 3
"""The longest sentence names three blocks (move-between)."""


class TabletopStateEnv(TabletopEnv):
    """`TabletopEnv` with scenes, tasks, experts, success and seeds unchanged, but no cameras and a fuller state.

    Args:
        task: as in `TabletopEnv`.
        image_size: side of the picture that `render` makes, pixels. Only `render` and `render_at` need OpenGL.
        cameras: must be empty.
        render: ignored; there are no pixels to leave out.
        perturbation: as in `TabletopEnv`, where it is not about pictures.

    Observation: {"agent_pos": float32 (29,)}, table frame, m; absent things are zeros. In this order: hand xyz and
    gap between the fingers; xyz of the first, second and third block that the goal names; xy of its zone, or of the
    wall's middle; the unit vector of its direction (left, right, away, near; an extreme such as "leftmost" is resolved
    to its block); xyz of all four blocks. Yaw is left out because experts do not look at it. They are functions of
    (task, agent_pos), but for the way around a wall, which nobody is told.

    The state always resolves the true goal, whatever instruction is given: evaluations with swapped instructions
    mean nothing here.
    """

    state_names = (
        *TabletopEnv.state_names,
        *(f"{block}_{axis}" for block in ("first", "second", "third") for axis in "xyz"),
        *("zone_x", "zone_y", "direction_x", "direction_y"),
        *(f"block{i}_{axis}" for i in range(N_BLOCKS) for axis in "xyz"),
    )

    PERTURBATIONS = ("held-out-positions",)

    def __init__(
        self,
        task: str = "reach",
        image_size: int = 64,
        cameras: tuple[str, ...] = (),
        render: bool = False,
        perturbation: str | None = None,
    ) -> None:
        if cameras:
            raise ValueError(
                f"expected no cameras in 'tabletop_state', got {cameras!r}; leave them out, or use 'tabletop'"
            )
        super().__init__(task, image_size, render=False, perturbation=perturbation)
        self.cameras = ()
        hand = self.observation_space["agent_pos"]
        assert isinstance(hand, gymnasium.spaces.Box)
        reach = np.ones(len(self.state_names) - len(hand.low), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {"agent_pos": gymnasium.spaces.Box(np.append(hand.low, -reach), np.append(hand.high, reach))}
        )

    def _agent_pos(self) -> tuple[float, ...]:
        episode, blocks = self.episode, self.state.blocks
        goal = episode.goal
        place = episode.zones[goal.zone] if goal.zone >= 0 else episode.wall or (0.0, 0.0)
        named: list[float] = [value for block in goal.blocks for value in blocks[block]]
        return (
            *super()._agent_pos(),
            *named,
            *[0.0] * (3 * _NAMED - len(named)),
            *place,
            *(DIRECTIONS.get(goal.word, (0.0, 0.0)) if episode.wall is None else (0.0, 0.0)),
            *(value for block in blocks for value in block),
        )
