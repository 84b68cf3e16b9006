# SPDX-License-Identifier: Apache-2.0
"""What a number depends on besides the seeds: versions, machine, renderer, commit, checkpoint, date.

Contact tasks change between MuJoCo versions and pixels between renderers, so a success rate without these is
not reproducible. Versions come from package metadata: nothing heavy is imported to ask for its version.
"""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "lerobot", "metaworld")
DISTRIBUTION = "lerobot_policy_lattice"


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as the system gives it, or the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Commit of the checkout this package lies in ("+dirty" if tracked files differ), or None outside."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+dirty"
    return commit


def checkpoint_hash(path: Path) -> str | None:
    """sha256 over names and contents of a checkpoint folder's weights and JSON files, or None if it has no
    weights.

    Training state (training.*) does not count: it changes no action, and an exported checkpoint has none.
    """
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".safetensors", ".json"))
    files = [p for p in files if p.stem not in ("training", "checksums")]
    if not any(p.suffix == ".safetensors" for p in files):
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def manifest(renderer: str | None = None, checkpoint: Path | None = None) -> dict[str, object]:
    """The manifest as a JSON-ready dict. `renderer`: what the simulator's GL says of itself, if known."""
    versions = {"python": platform.python_version(), "vla": version(DISTRIBUTION)}
    versions |= {package: version(package) for package in PACKAGES}
    return {
        "versions": {name: value for name, value in versions.items() if value is not None},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "renderer": renderer,
        "checkpoint_sha256": checkpoint_hash(checkpoint) if checkpoint is not None else None,
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
