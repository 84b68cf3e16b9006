# SPDX-License-Identifier: Apache-2.0
"""Pictures of a disturbed episode: another camera, other light, things that lie about.

All of it is written into the MjvScene, which MuJoCo makes anew from model and data for every picture. Model and data
are never touched, so physics cannot change, and nothing can leak into the next episode, nor into another environment
that shares the model.
"""

import math
from typing import Any

import numpy as np

from vla.envs.offscreen import mujoco
from vla.envs.perturbation import UNDISTURBED, Disturbance

_GEOMS = {"ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID, "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER}


def disturb(scene: Any, disturbance: Disturbance) -> None:
    """Disturb an mjvScene that has just been updated; it is drawn next."""
    if disturbance is UNDISTURBED:
        return
    if any((*disturbance.camera_move, *disturbance.camera_turn)):
        _move_camera(scene, np.array(disturbance.camera_move), np.array(disturbance.camera_turn))
    if disturbance.light is not None:
        colour = np.array(disturbance.light.colour)
        for light in scene.lights[: scene.nlight]:
            light.ambient, light.diffuse = light.ambient * colour, light.diffuse * colour
            light.specular = light.specular * colour
            if not light.headlight:
                light.dir = np.array(disturbance.light.direction)
    for thing in disturbance.distractors:
        cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
        # A cylinder's size is (radius, half its height, nothing).
        size = (thing.half[0], thing.half[2], 0.0) if thing.shape == "cylinder" else thing.half
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            _GEOMS[thing.shape],
            np.array(size),
            np.array((*thing.foot[:2], thing.foot[2] + thing.half[2])),
            np.array((cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0)),
            np.array((*thing.colour, 1.0), np.float32),
        )
        scene.ngeom += 1


def _move_camera(scene: Any, move: np.ndarray, turn: np.ndarray) -> None:
    for camera in scene.camera:  # two eyes, whose mean is the picture
        forward, up = np.array(camera.forward, float), np.array(camera.up, float)
        axes = np.stack([np.cross(forward, up), up, forward])
        rotation = np.zeros(9)
        quaternion, angle = np.zeros(4), float(np.linalg.norm(turn))
        mujoco.mju_axisAngle2Quat(quaternion, turn @ axes / max(angle, 1e-12), angle)
        mujoco.mju_quat2Mat(rotation, quaternion)
        camera.pos = np.array(camera.pos, float) + move @ axes
        camera.forward, camera.up = rotation.reshape(3, 3) @ forward, rotation.reshape(3, 3) @ up
