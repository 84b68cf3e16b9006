# SPDX-License-Identifier: Apache-2.0
"""The command line as a person meets it: in processes of its own, with the real help and the real doctor."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from vla import __version__, cli, doctor

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`vla ARGUMENTS` in a new process, stdin closed, stderr not a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "vla.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_is_instant_and_lists_verbs_in_order_of_use() -> None:
    started = time.perf_counter()
    done = run("--help")
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0
    assert elapsed_s < 1.0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line.split()]
    assert listed[: len(cli.VERBS)] == [*cli.VERBS]
    assert all(verb.help in done.stdout for verb in cli.VERBS.values())


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from vla import cli; cli.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    for package in ("torch", "numpy", "tyro", "rich", "mujoco", "lerobot"):
        assert f"'{package}'" not in done.stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == f"vla {__version__}"


@pytest.mark.parametrize(("typed", "meant"), [("evla", "eval"), ("trian", "train"), ("Doctor", "doctor")])
def test_unknown_verb_names_the_nearest(typed: str, meant: str) -> None:
    done = run(typed)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"'{typed}'" in done.stderr
    assert f"'{meant}'" in done.stderr


def test_unknown_verb_like_nothing_lists_them() -> None:
    done = run("xyzzy")
    assert done.returncode == 2
    assert all(verb in done.stderr for verb in cli.VERBS)


def test_unknown_flag_names_the_nearest() -> None:
    done = run("doctor", "--vrebose")
    assert done.returncode == 2
    assert "--vrebose" in done.stderr
    assert "--verbose" in done.stderr
    assert "Traceback" not in done.stderr


def test_verb_help_shows_the_docstrings_of_the_fields() -> None:
    done = run("doctor", "--help")
    assert done.returncode == 0
    assert "Print one JSON object" in " ".join(done.stdout.split())


def test_errors_stay_off_stdout_and_uncoloured_in_a_pipe() -> None:
    assert "\033" not in run("evla").stderr


# ------------------------------------------------------------------------------------------------------------
# Exit codes, with a verb that does what it is told


@dataclasses.dataclass(frozen=True)
class StubConfig:
    """A verb's options."""

    how: str
    """What to do."""
    out: Path = Path("runs/stub")


@dataclasses.dataclass(frozen=True)
class StubResult:
    exit_code: int


def stub(config: StubConfig) -> StubResult | None:
    match config.how:
        case "value":
            raise ValueError("expected 4 cameras, got 3;\nadd one")
        case "interrupt":
            raise KeyboardInterrupt
        case "missing":
            raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco.viewer")
        case "ours":
            raise ModuleNotFoundError("No module named 'vla.nothing'", name="vla.nothing")
        case "full":
            raise OSError(errno.ENOSPC, "disk full while saving 100")
        case "absent":
            Path("no/such/folder/file").read_text(encoding="utf-8")
        case "one":
            return StubResult(1)
    return None


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tyro")
    module = types.ModuleType("stub_verb")
    module.StubConfig, module.stub = StubConfig, stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stub_verb", module)
    monkeypatch.setitem(cli.VERBS, "stub", cli.Verb("stub_verb", "StubConfig", "stub", "for the tests"))
    monkeypatch.delenv("VLA_DEBUG", raising=False)


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize(
    ("how", "code"),
    [("well", 0), ("one", 1), ("value", 2), ("missing", 2), ("absent", 2), ("full", 1), ("interrupt", 130)],
)
def test_exit_codes(how: str, code: int) -> None:
    assert cli.main(["stub", "--how", how]) == code


@pytest.mark.usefixtures("stubbed")
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["stub", "--how", "value"])
    assert capsys.readouterr().err == "error: expected 4 cameras, got 3; add one\n"


@pytest.mark.usefixtures("stubbed")
def test_interruption_says_what_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["stub", "--how", "interrupt", "--out", "somewhere"])
    assert "what is saved is in somewhere" in capsys.readouterr().err


@pytest.mark.usefixtures("stubbed")
def test_missing_package_names_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["stub", "--how", "missing"])
    assert "lerobot_policy_lattice[sim]" in capsys.readouterr().err


@pytest.mark.usefixtures("stubbed")
def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"vla\.nothing"):
        cli.main(["stub", "--how", "ours"])
    monkeypatch.setenv("VLA_DEBUG", "1")
    with pytest.raises(ValueError, match="4 cameras"):
        cli.main(["stub", "--how", "value"])


# ------------------------------------------------------------------------------------------------------------
# Doctor


@pytest.mark.render
def test_doctor_examines_this_machine() -> None:
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    by_name = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "rendering", "video", "disk", "memory", "cores", "cache"} <= set(by_name)
    assert all(check["status"] in ("ok", "warn", "fail") for check in report["checks"])
    assert by_name["python"]["status"] == "ok"
    assert by_name["torch"]["status"] == "ok"


def test_doctor_fails_with_one_command_when_nothing_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_render_with", lambda backend: (None, "Traceback\nImportError: no EGL\n"))
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    check = doctor.check_rendering()
    assert check.status == "fail"
    assert "ImportError: no EGL" in check.found
    assert "apt-get install -y libegl1" in check.mend
    assert doctor.Diagnosis((check,)).exit_code == 1


def test_doctor_offers_the_backend_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(
        doctor, "_render_with", lambda backend: ("llvmpipe", "") if backend == "osmesa" else (None, "no")
    )
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    assert doctor.check_rendering().mend == "export MUJOCO_GL=osmesa"


def test_doctor_refuses_the_mujoco_that_breaks_metaworld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "4.0.0")
    check = doctor.check_mujoco()
    assert check.status == "fail"
    assert "mujoco>=3.3,<3.9" in check.mend


def test_doctor_only_warns_of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    checks = (doctor.check_lerobot(), doctor.check_mujoco(), doctor.check_rendering())
    assert [check.status for check in checks] == ["warn"] * 3
    assert doctor.Diagnosis(checks).exit_code == 0
    assert "lerobot_policy_lattice[sim]" in checks[1].mend


def test_doctor_leaves_nothing_behind(tmp_path: Path) -> None:
    assert doctor.check_writable("runs", tmp_path / "not" / "yet").status == "ok"
    assert doctor.check_disk(tmp_path / "not" / "yet").status in ("ok", "warn", "fail")
    assert list(tmp_path.iterdir()) == []
