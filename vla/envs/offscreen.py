# SPDX-License-Identifier: Apache-2.0
"""MuJoCo, imported so that it draws without a display, and what every environment does about OpenGL.

Import `mujoco` from here: it picks its OpenGL when it is imported, so the variables must be set before.
"""

import atexit
import os
import sys
import weakref
from typing import Any

_LATE = "mujoco" in sys.modules and "MUJOCO_GL" not in os.environ
if sys.platform.startswith("linux"):
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    # Mesa's software rasteriser: draw in the calling thread. For small pictures its worker threads cost more
    # than they give, and they take the cores of the other environments.
    os.environ.setdefault("LP_NUM_THREADS", "0")

_GL_ERROR: Exception | None = None
"""Why MuJoCo came without OpenGL: physics needs none, so this matters only to who wants a picture."""
try:
    import mujoco
except Exception as error:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("mujoco"):
        raise
    _GL_ERROR, _backend = error, os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        import mujoco
    finally:  # child processes are to try again
        os.environ.pop("MUJOCO_GL")
        if _backend is not None:
            os.environ["MUJOCO_GL"] = _backend

__all__ = ["close_at_exit", "mujoco", "no_renderer"]


def no_renderer(error: Exception) -> RuntimeError:
    """What to raise when a context could not be opened because of `error`."""
    backend = os.environ.get("MUJOCO_GL")
    late = ", set too late because mujoco was imported first: set it in the shell" if _LATE else ""
    return RuntimeError(
        f"MuJoCo cannot open an off-screen OpenGL context (MUJOCO_GL={backend}{late}): "
        f"{_GL_ERROR or error}. Run `vla doctor` to see what is missing."
    )


_OPEN: "weakref.WeakSet[Any]" = weakref.WeakSet()


def close_at_exit(holder: Any) -> None:
    """Call `holder.close()` before the interpreter tears OpenGL down: a context freed after that prints a traceback.

    To be called after the first context exists, because exit handlers run last come, first served, and MuJoCo's
    own ends EGL.
    """
    if not _OPEN:
        atexit.unregister(_close_open)
        atexit.register(_close_open)
    _OPEN.add(holder)


def _close_open() -> None:
    for holder in list(_OPEN):
        holder.close()
