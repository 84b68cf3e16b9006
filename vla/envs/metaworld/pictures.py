# SPDX-License-Identifier: Apache-2.0
"""Pictures of MuJoCo models, all from one OpenGL context in the process.

Fifty tasks in two sizes would be a hundred contexts with `mujoco.Renderer`, which has one for each model and size.
Here a model is uploaded into the context that all share, and drawn at any size.
"""

import weakref
from typing import Any

import numpy as np

from vla.envs.disturb import disturb
from vla.envs.offscreen import close_at_exit, mujoco, no_renderer
from vla.envs.perturbation import UNDISTURBED, Disturbance

MIN_SIZE, MAX_SIZE = 16, 512
"""Sides of pictures, pixels."""
_MAX_GEOMS = 1000


class _Shared:
    """The process's OpenGL context and the views in it. Belongs to one thread, as OpenGL contexts do."""

    def __init__(self) -> None:
        self.context: Any = None
        self.views: weakref.WeakSet[View] = weakref.WeakSet()

    def make_current(self) -> None:
        """RuntimeError, saying what is missing, if there can be no context."""
        if self.context is None:
            try:
                self.context = mujoco.GLContext(MAX_SIZE, MAX_SIZE)
            except Exception as error:
                raise no_renderer(error) from error
            close_at_exit(self)
        # Other environments have contexts of their own: never rely on what was current.
        self.context.make_current()

    def close(self) -> None:
        """Free every view, then the context; a later picture opens a new one."""
        for view in list(self.views):
            view.close()
        if self.context is not None:
            self.context.free()
            self.context = None


class View:
    """One model as seen by one of its cameras.

    Args:
        model: a mujoco.MjModel; its meshes and textures are uploaded now.
        camera: the camera's number.
        official: the model's own multisampling (4) and shadow map (4096). Otherwise neither, which costs little of the
            picture and, without a GPU, saves most of the time.
    """

    def __init__(self, model: Any, camera: int, official: bool) -> None:
        self._gpu: Any = None
        _SHARED.make_current()
        quality, screen = model.vis.quality, model.vis.global_
        before = quality.offsamples, quality.shadowsize, screen.offwidth, screen.offheight
        screen.offwidth = screen.offheight = MAX_SIZE
        if not official:
            quality.offsamples = quality.shadowsize = 0
        try:
            self._gpu = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        except Exception as error:
            raise no_renderer(error) from error
        finally:
            quality.offsamples, quality.shadowsize, screen.offwidth, screen.offheight = before
        self._model = model
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        if not official:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera
        _SHARED.views.add(self)

    def draw(self, data: Any, size: int, disturbance: Disturbance = UNDISTURBED) -> np.ndarray:
        """The picture of `data`, upright as the camera holds it, uint8 (size, size, 3). Poses must be up to date."""
        _SHARED.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gpu)  # each view has a buffer of its own
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        disturb(self._scene, disturbance)
        rectangle = mujoco.MjrRect(0, 0, size, size)
        image_HWC = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(rectangle, self._scene, self._gpu)
        mujoco.mjr_readPixels(image_HWC, None, rectangle, self._gpu)
        return image_HWC[::-1]  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free what is in the context. Safe to call twice, and at any time."""
        if self._gpu is not None and _SHARED.context is not None:
            _SHARED.make_current()  # freeing acts on the current context, whoever's it is
            self._gpu.free()
        self._gpu = None
        _SHARED.views.discard(self)

    def __del__(self) -> None:
        self.close()


_SHARED = _Shared()
