# SPDX-License-Identifier: Apache-2.0
"""`vla doctor`: is this machine fit, and if not, which one command mends it?

Every check does the thing that is needed (renders a picture, encodes a video) rather than asking a version:
what fails in practice is a missing system library under a package that installed without complaint.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

GIB = 2**30
RENDER_TIMEOUT_S = 120.0
PACKAGE = "lerobot_policy_lattice"

# Runs in a process of its own: a broken GL stack aborts the interpreter rather than raising, and MuJoCo reads
# MUJOCO_GL once, at import. Prints what OpenGL calls the renderer.
RENDER_PROGRAM = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="sphere" size=".3"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, height=8, width=8)
renderer.update_scene(data)
picture = renderer.render()
from OpenGL import GL
name = GL.glGetString(GL.GL_RENDERER)
renderer.close()
assert picture.shape == (8, 8, 3) and picture.max() > picture.min(), 'the picture is of one colour'
print('RENDERER', name.decode() if name else 'unknown')
"""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """What to look at, and how to say it."""

    json: bool = False
    """Print one JSON object instead of the table."""
    out: Path = Path("runs")
    """Where runs will be written: its disk is the one that needs room."""
    verbose: bool = False
    """Show the whole error of a check that failed."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table. `mend` is the one command to run when the status is not "ok", or empty."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All checks. `exit_code` is 1 if any failed; warnings leave it at 0."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        return int(any(check.status == "fail" for check in self.checks))

    def as_dict(self) -> dict[str, object]:
        """What `--json` prints."""
        return {"ok": self.exit_code == 0, "checks": [dataclasses.asdict(check) for check in self.checks]}


def _pip_install(what: str) -> str:
    # This interpreter, not whichever "python" the shell finds; uv makes environments without pip.
    installer = f"{sys.executable} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"
    return f"{installer} '{what}'"


def _as_root(command: str) -> str:
    return command if hasattr(os, "geteuid") and os.geteuid() == 0 else f"sudo {command}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _version_pair(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.6.1" and "0.6.1rc2" -> (0, 6, 1)."""
    numbers: list[int] = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_python() -> Check:
    """Python 3.12 or 3.13: lerobot 0.6 asks for 3.12, and MuJoCo 3.3.0 has no wheels past 3.13."""
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if (3, 12) <= tuple(sys.version_info[:2]) <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "warn", f"{found}, tested with 3.12", "make distclean && make PYTHON=python3.12 demo")


def check_torch() -> Check:
    """torch imports, multiplies, and says which accelerator it sees."""
    try:
        import torch

        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert float(product.sum()) == 8.0
        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
        if device == "CPU" and torch.backends.mps.is_available():
            device = "Apple GPU (mps)"
    except Exception as error:
        return Check("torch", "fail", "cannot be used", _pip_install("torch>=2.7"), repr(error))
    return Check("torch", "ok", f"{torch.__version__}, {device}, {torch.get_num_threads()} threads")


def _check_package(
    name: str, extra: str, purpose: str, least: tuple[int, ...], below: tuple[int, ...], specifier: str
) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        mend = _pip_install(f"{PACKAGE}[{extra}]")
        return Check(name, "warn", f"not installed; needed to {purpose}", mend)
    if not least <= _version_pair(version) < below:
        found = f"{version}, expected {specifier}"
        return Check(name, "fail", found, _pip_install(f"{name}{specifier}"))
    return Check(name, "ok", version)


def check_lerobot() -> Check:
    """lerobot of the minor version whose dataset format and plug-in interface were tested."""
    return _check_package("lerobot", "train", "read and write datasets", (0, 6, 1), (0, 7), ">=0.6.1,<0.7")


def check_mujoco() -> Check:
    """MuJoCo old enough for Meta-World: 4.0 breaks it."""
    return _check_package("mujoco", "sim", "simulate", (3, 3), (3, 9), ">=3.3,<3.9")


def _render_with(backend: str | None) -> tuple[str | None, str]:
    """(renderer name or None, error text) of an 8x8 picture rendered with that MUJOCO_GL in a new process."""
    environment = dict(os.environ)
    if backend is not None:
        environment["MUJOCO_GL"] = backend
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER_PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=RENDER_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f"no picture after {RENDER_TIMEOUT_S:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith("RENDERER "):
            return line.removeprefix("RENDERER "), ""
    return None, done.stderr or f"exit code {done.returncode}"


def check_rendering() -> Check:
    """A picture rendered offscreen, with the backend that the environments will use."""
    try:
        importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError:
        return Check("rendering", "warn", "not tried: no mujoco", _pip_install(f"{PACKAGE}[sim]"))
    linux = platform.system() == "Linux"
    backend = os.environ.get("MUJOCO_GL") or ("egl" if linux else None)
    shown = f"MUJOCO_GL={backend}" if backend else "native GL"
    renderer, error = _render_with(backend)
    if renderer is not None:
        return Check("rendering", "ok", f"{renderer}, {shown}")
    if linux:
        for other in ("egl", "osmesa"):
            if other != backend and _render_with(other)[0] is not None:
                found = f"{shown} fails, MUJOCO_GL={other} works"
                return Check("rendering", "fail", found, f"export MUJOCO_GL={other}", error)
    mend = _as_root("apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libgles2") if linux else ""
    return Check("rendering", "fail", f"{shown}: {_last_line(error)}", mend, error)


def check_video() -> Check:
    """Eight small frames through H.264 in mp4 and back, as datasets keep their images. Needs no ffmpeg."""
    try:
        import av
        import numpy as np
    except ImportError as error:
        mend = _pip_install(f"{PACKAGE}[train]")
        return Check("video", "warn", "no PyAV; needed to read and write datasets", mend, repr(error))
    frames = [np.full((64, 64, 3), 16 + 24 * index, np.uint8) for index in range(8)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "probe.mp4")
            with av.open(path, "w") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            with av.open(path) as container:
                decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        worst = max(abs(float(got.mean()) - float(sent.mean())) for got, sent in zip(decoded, frames, strict=True))
        if worst > 8:
            raise RuntimeError(f"frames come back {worst:.0f} grey levels off")
    except Exception as error:
        return Check("video", "fail", "libx264 in mp4 fails", _pip_install("av>=15,<16"), repr(error))
    return Check("video", "ok", f"libx264 in mp4, PyAV {av.__version__}")


def _existing_parent(path: Path) -> Path:
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def check_disk(out: Path) -> Check:
    """Room where runs are written: the demo takes about 2 GiB, a dataset with its cache much more."""
    free = shutil.disk_usage(_existing_parent(out)).free / GIB
    status: Literal["ok", "warn", "fail"] = "fail" if free < 2 else "warn" if free < 10 else "ok"
    mend = "" if status == "ok" else "vla doctor --out /a/larger/disk"
    return Check("disk", status, f"{free:.0f} GiB free for {out}", mend)


def _memory_gib() -> float | None:
    """Memory that this process may use: the machine's, or its container's if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError, AttributeError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text) / GIB) if text.isdigit() else total


def check_memory() -> Check:
    """8 GiB are comfortable for the demo."""
    memory = _memory_gib()
    if memory is None:
        return Check("memory", "warn", "cannot tell on this system")
    status: Literal["ok", "warn", "fail"] = "fail" if memory < 3 else "warn" if memory < 7 else "ok"
    return Check("memory", status, f"{memory:.0f} GiB")


def _cores() -> float:
    """Processors that this process may use: its affinity, or its container's quota if that is less."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    parts = quota.read_text().split() if quota.is_file() else ["max"]
    return min(count, int(parts[0]) / int(parts[1])) if parts[0].isdigit() else count


def check_cores() -> Check:
    """Two cores are what the demo's minutes are meant for."""
    cores = _cores()
    return Check(
        "cores",
        "ok" if cores >= 2 else "warn",
        f"{cores:g}" + ("" if cores >= 2 else ", slow with less than 2"),
    )


def check_writable(name: str, folder: Path) -> Check:
    """A file can be made in `folder`, or in the nearest parent that exists. Leaves nothing behind."""
    place = _existing_parent(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        mend = _as_root(f"chown -R $(id -u) {place}")
        return Check(name, "fail", f"cannot write to {place}: {error.strerror}", mend, repr(error))
    return Check(name, "ok", str(folder))


def cache_folder() -> Path:
    """Where downloads are cached: LeRobot's folder, since the datasets are LeRobot's."""
    home = os.environ.get("HF_LEROBOT_HOME") or os.path.join(
        os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"),
        "lerobot",
    )
    return Path(home).expanduser()


def examine(config: DoctorConfig) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Name and check, in the order of the table."""
    yield "python", check_python
    yield "torch", check_torch
    yield "lerobot", check_lerobot
    yield "mujoco", check_mujoco
    yield "rendering", check_rendering
    yield "video", check_video
    yield "cores", check_cores
    yield "memory", check_memory
    yield "disk", lambda: check_disk(config.out)
    yield "runs", lambda: check_writable("runs", config.out)
    yield "cache", lambda: check_writable("cache", cache_folder())


def doctor(config: DoctorConfig) -> Diagnosis:
    """Run every check, print the table (or JSON), and return the diagnosis."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    checks: list[Check] = []
    for name, check in examine(config):
        if config.json or not console.is_terminal:
            checks.append(check())
        else:
            with console.status(f"checking {name}"):
                checks.append(check())
    diagnosis = Diagnosis(tuple(checks))
    if config.json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
        return diagnosis

    colour = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for item in checks:
        table.add_row(Text(item.status, style=colour[item.status]), item.name, Text(item.found))
    console.print(table)
    for item in checks:
        if item.status != "ok" and item.mend:
            # Not wrapped by rich: a command is there to be copied.
            console.print(Text(f"{item.name}: {item.mend}", style=colour[item.status]), soft_wrap=True)
        if item.status == "fail" and config.verbose and item.detail:
            console.print(Text(item.detail, style="dim"), soft_wrap=True)
    failed = [item.name for item in checks if item.status == "fail"]
    warned = sum(item.status == "warn" for item in checks)
    verdict = f"not fit: {', '.join(failed)}" if failed else "fit" + (f", {warned} warning(s)" if warned else "")
    console.print(Text(f"this machine is {verdict}", style=colour["fail" if failed else "ok"]))
    return diagnosis
