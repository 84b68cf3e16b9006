# SPDX-License-Identifier: Apache-2.0
"""The package as others meet it, and the arrows between its rooms (docs/architecture.md)."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vla
from vla import cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Highest first. A room imports itself and what stands below it, never what stands above or beside it.
ORDER: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("demo",),
    ("reproduce",),
    ("doctor", "bench"),
    ("eval", "serve", "lerobot"),
    ("train",),
    ("recipes",),
    ("policy",),
    ("data",),
    ("checkpoint",),
    ("diffusion",),
    ("model",),
    ("tokenizers", "envs", "randomness", "processes"),
    ("canvas",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
GROUND = {"tokenizers", "envs", "randomness", "processes", "canvas"}
MAY_IMPORT_LEROBOT = {"lerobot", "data", "eval", "bench"}
FILES = sorted((ROOT / "vla").rglob("*.py"))


def room_of(file: Path) -> str:
    """vla/eval/video.py -> "eval"; vla/policy/acting.py -> "policy"; vla/__init__.py -> ""."""
    first = file.relative_to(ROOT / "vla").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in the file, those inside functions too."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from vla import recipes` imports a room; `from vla.canvas import Layout` imports from one.
                yield node.lineno, f"{module}.{alias.name}"


def test_every_room_has_its_place() -> None:
    rooms = {room_of(file) for file in FILES} - {""}
    assert rooms <= set(RANK), f"say in ORDER where {sorted(rooms - set(RANK))} stands"


def test_arrows_run_downwards() -> None:
    wrong = []
    for file in FILES:
        room = room_of(file)
        for line, name in imported(file):
            parts = name.split(".")
            if parts[0] != "vla" or len(parts) < 2 or parts[1] == room or parts[1] not in RANK or not room:
                continue
            if RANK[parts[1]] <= RANK[room]:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {room} imports {parts[1]}")
    assert not wrong, "\n".join(wrong)


def test_the_ground_floor_imports_nothing_of_ours_but_canvas() -> None:
    wrong = []
    for file in FILES:
        room = room_of(file)
        if room not in GROUND:
            continue
        for line, name in imported(file):
            parts = name.split(".")
            if parts[0] == "vla" and parts[1:2] not in (["canvas"], [room]):
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {name}")
    assert not wrong, "\n".join(wrong)


def test_lerobot_stays_in_its_rooms() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in FILES
        if room_of(file) not in MAY_IMPORT_LEROBOT
        for line, name in imported(file)
        if name.split(".")[0] == "lerobot"
    ]
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after the statement, in a new process."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing() -> None:
    assert not loaded_by("import vla") & {"torch", "numpy", "rich", "tyro"}


def test_deployment_core_pulls_neither_simulator_nor_dataset_stack() -> None:
    forbidden = {"mujoco", "metaworld", "lerobot", "gymnasium", "datasets", "pandas", "av", "tyro", "rich"}
    assert not loaded_by("import vla.policy") & forbidden


@pytest.mark.parametrize("verb", [*cli.VERBS])
def test_reading_options_loads_nothing_heavy(verb: str) -> None:
    """`vla VERB --help` imports the verb's module: its dataclass must not cost what torch takes."""
    module = cli.VERBS[verb].module
    assert not loaded_by(f"import {module}") & {"torch", "mujoco", "lerobot", "av", "pandas", "pyarrow"}


def test_core_dependencies_are_five() -> None:
    names = {re.split(r"[<>=!~\[ ;]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "tokenizers", "einops"}


def test_version_is_said_once() -> None:
    assert PROJECT["project"]["version"] == vla.__version__


def test_every_python_file_says_its_licence() -> None:
    files = [file for folder in ("vla", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    silent = [
        str(file.relative_to(ROOT))
        for file in files
        if file.stat().st_size
        and not file.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0")
    ]
    assert not silent, silent


def test_lock_pins_what_was_measured_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.search(rf"^{re.escape(line)}\b", lock, re.MULTILINE), f"{line} is not in requirements.lock"
    assert "://" not in lock
    assert not re.search(r"^-", lock, re.MULTILINE), "an option such as --index-url is in requirements.lock"
    assert not re.search(r"^mujoco==4", lock, re.MULTILINE)


def test_no_lock_that_names_index_hosts() -> None:
    assert not (ROOT / "uv.lock").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by the backend in a process of its own; no network, nothing left in the checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    program = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return zipfile.ZipFile(folder / done.stdout.strip().splitlines()[-1])


def test_wheel_keeps_the_name_that_lerobot_looks_for(wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert re.search(r"^Name: lerobot_policy_lattice$", text, re.MULTILINE)
    assert re.search(r"^License-Expression: Apache-2.0$", text, re.MULTILINE)


def test_wheel_installs_vla_and_the_module_lerobot_looks_for(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {"vla", "lerobot_policy_lattice"}
    assert {"vla/py.typed", "vla/cli.py", "vla/policy/acting.py", "vla/serve/page/page.js"} <= set(wheel.namelist())
    weights = {name for name in wheel.namelist() if name.endswith(".safetensors")}
    shipped = ("tabletop_image/image_tokenizer", "tabletop_nano/model")
    shipped += ("tabletop_unified/image_tokenizer", "tabletop_unified/model")
    assert weights == {f"vla/checkpoints/{name}.safetensors" for name in shipped}
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".mp4"))]


def test_installed_distribution_agrees() -> None:
    try:
        distribution = importlib.metadata.distribution("lerobot_policy_lattice")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed; `make test` installs it")
    assert distribution.metadata["Name"] == "lerobot_policy_lattice"
    assert "vla" in {entry.name for entry in distribution.entry_points if entry.group == "console_scripts"}
