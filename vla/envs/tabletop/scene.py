# SPDX-License-Identifier: Apache-2.0
"""The tabletop as MuJoCo XML: a table, four blocks, two flat zones, a wall and a floating two-finger hand.

It is made of primitives, with no meshes and no textures, so the whole scene is a few kB, free of licences,
and drawn alike by every renderer. Every body is always there (what a task does not need is parked out of
sight), so the state is a plain array of fixed size and changing the task never rebuilds the model. Frame: x
to the right and y away as the front camera sees them, z up, metres; the origin is the middle of the table
top.
"""

import math

N_BLOCKS = 4
N_ZONES = 2
BLOCK_HALF = 0.026
"""Half the edge of a block, m."""
ZONE_HALF = 0.05
FINGER_BELOW = 0.012
"""How far the fingertips reach below the hand's reference point, m."""
MAX_OPENING = 0.08
"""Gap between the fingers when open, m."""
WORKSPACE = ((-0.28, 0.28), (-0.28, 0.28), (0.018, 0.22))
"""Where the hand's reference point may be sent: x, y, z ranges, m."""
WALL_HALF = (0.10, 0.008, 0.05)
"""Half the wall's length (along x), depth and height, m: higher than a hand travels that goes around it."""
REGION = 0.19
"""Blocks and zones start with |x| and |y| up to this, m."""
TIMESTEP_S = 0.005

COLOURS: dict[str, tuple[float, float, float]] = {
    # The six corners of the RGB cube: as far apart as six colours can be, so that 5 pixels are enough to name
    # one.
    "red": (0.86, 0.08, 0.08),
    "green": (0.10, 0.62, 0.12),
    "blue": (0.10, 0.22, 0.90),
    "yellow": (0.96, 0.86, 0.08),
    "purple": (0.68, 0.12, 0.78),
    "cyan": (0.10, 0.80, 0.86),
}
PARKED = (0.0, 0.0, -1.0)
"""Where zones and the wall wait while no task needs them (below the ground, out of every picture and of reach)."""

_ELEVATION = math.radians(57.0)
_DISTANCE = 1.3
_LOOK_AT = (0.0, 0.02, 0.035)
_HALF_VIEW = 0.295
"""Half the width seen at the distance of the table's middle, m."""


def _front_camera() -> str:
    """A far, narrow camera: nearly orthographic, so that pixels are almost linear in table positions."""
    sin, cos = math.sin(_ELEVATION), math.cos(_ELEVATION)
    x, y, z = _LOOK_AT
    fovy = 2 * math.degrees(math.atan(_HALF_VIEW / _DISTANCE))
    return (
        f'<camera name="front" pos="{x} {y - cos * _DISTANCE:.5f} {z + sin * _DISTANCE:.5f}" '
        f'xyaxes="1 0 0 0 {sin:.5f} {cos:.5f}" fovy="{fovy:.4f}"/>'
    )


def _block(index: int) -> str:
    h = BLOCK_HALF
    return (
        f'<body name="block{index}" pos="{0.1 * index} 0 {h}"><freejoint name="block{index}"/>'
        f'<geom name="block{index}" type="box" size="{h} {h} {h}" mass="0.1" contype="1" conaffinity="3" '
        f'friction="1 0.01 0.001"/></body>'
    )


def _zone(index: int) -> str:
    # A geom that collides with nothing, and not a site: batched simulators on a GPU draw geoms only.
    x, y, z = PARKED
    return (
        f'<geom name="zone{index}" type="box" pos="{x} {y} {z}" size="{ZONE_HALF} {ZONE_HALF} 0.0008" '
        f'contype="0" conaffinity="0"/>'
    )


def _wall() -> str:
    # A body that can be put somewhere, since the world's own geoms are looked for only where the model has them. Only
    # the hand runs into it: blocks start behind it, and nothing pushes them there. It is hard enough to stop a hand
    # that is drawn by its target: with the contacts of the rest, that would pass through.
    x, y, z = PARKED
    length, depth, height = WALL_HALF
    return (
        f'<body name="wall" mocap="true" pos="{x} {y} {z}"><geom name="wall" type="box" '
        f'size="{length} {depth} {height}" contype="0" conaffinity="2" priority="2" solimp="0.999 0.9999 0.0001" '
        f'rgba="0.52 0.37 0.22 1"/></body>'
    )


def _finger(name: str, side: int) -> str:
    return (
        f'<body name="{name}">'
        f'<joint name="{name}" type="slide" axis="{side} 0 0" range="0 {MAX_OPENING / 2}" '
        f'damping="8"/>'
        f'<geom type="box" pos="{side * 0.006} 0 0.015" size="0.006 0.011 0.027" mass="0.05" '
        f'contype="2" conaffinity="0" '
        f'condim="4" friction="2 0.05 0.001" priority="1" material="finger"/></body>'
    )


def tabletop_xml() -> str:
    """Return the MJCF of the scene. qpos is the hand's pose (7), fingers (2), four block poses (4 x 7)."""
    blocks = "".join(_block(i) for i in range(N_BLOCKS))
    zones = "".join(_zone(i) for i in range(N_ZONES))
    return f"""
<mujoco model="tabletop">
  <compiler autolimits="true"/>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <default><geom solref="0.01 1" solimp="0.95 0.995 0.001"/></default>
  <visual>
    <global offwidth="512" offheight="512"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0"/>
    <map znear="0.02" zfar="8"/>
  </visual>
  <statistic extent="1" center="0 0 0"/>
  <asset><material name="finger" rgba="1 1 1 1" emission="0.45"/></asset>
  <worldbody>
    <light directional="true" pos="0 0 2" dir="0.15 0.45 -1"
      diffuse="0.45 0.45 0.45" specular="0 0 0" castshadow="false"/>
    {_front_camera()}
    <geom name="floor" type="plane" size="0 0 1" group="3" contype="1" conaffinity="1"
      friction="1 0.01 0.001"/>
    <geom name="table" type="box" pos="0 0 -0.02" size="0.37 0.33 0.02" contype="0" conaffinity="0"
      rgba="0.56 0.55 0.54 1"/>
    <geom name="ground" type="box" pos="0 0 -0.06" size="2 2 0.01" contype="0" conaffinity="0"
      rgba="0.36 0.36 0.38 1"/>
    {zones}
    <body name="target" mocap="true" pos="0 0 0.15"/>
    <body name="shade" mocap="true" pos="0 0 0.002">
      <geom name="shade" type="box" size="0.017 0.013 0.0006" contype="0" conaffinity="0"
        rgba="0.34 0.33 0.33 1"/>
    </body>
    <body name="hand" pos="0 0 0.15" gravcomp="1"><freejoint name="hand"/>
      <inertial pos="0 0 0.05" mass="0.6" diaginertia="0.001 0.001 0.001"/>
      <geom type="box" pos="0 0 0.050" size="0.053 0.010 0.008" contype="2" conaffinity="0"
        rgba="0.10 0.10 0.11 1"/>
      <geom type="box" pos="0 0 0.078" size="0.013 0.010 0.020" contype="0" conaffinity="0"
        rgba="0.10 0.10 0.11 1"/>
      <camera name="wrist" pos="0 -0.075 0.11" xyaxes="1 0 0 0 0.85 0.53" fovy="60"/>
      {_finger("finger_left", -1)}
      {_finger("finger_right", 1)}
    </body>
    {blocks}
    {_wall()}
  </worldbody>
  <equality>
    <weld body1="hand" body2="target" solref="0.011 1" solimp="0.97 0.995 0.001" relpose="0 0 0 1 0 0 0"/>
  </equality>
  <actuator>
    <position joint="finger_left" kp="300" ctrlrange="0 {MAX_OPENING / 2}" forcerange="-5 5"/>
    <position joint="finger_right" kp="300" ctrlrange="0 {MAX_OPENING / 2}" forcerange="-5 5"/>
  </actuator>
</mujoco>
"""
