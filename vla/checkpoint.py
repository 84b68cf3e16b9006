# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are folders, and a folder is either whole or not there.

    model.safetensors     weights to act with (EMA)            config.json            shape of the network, recipe, data
    tokenizers.json       limits, names, units of the dataset  text_tokenizer.json    the BPE
    training.safetensors  raw weights, optimiser (or slices)   training.json          step, seed, configuration
    checksums.json        SHA-256 of every file, checked on load

Written to a temporary folder beside the target, every file fsynced, then renamed: a kill or a full disk in the middle
leaves the checkpoint before it untouched. No pickle anywhere.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

VERSION = 2
CHECKSUMS = "checksums.json"
SHIPPED = Path(__file__).parent / "checkpoints"
"""Checkpoints that come with the package; a folder's name is its name."""


def resolve(name: str | Path) -> Path:
    """The folder of a checkpoint: a path, or the name of one that is shipped ("tabletop_nano")."""
    shipped = SHIPPED / str(name)
    return shipped if not Path(name).exists() and "/" not in str(name) and shipped.is_dir() else Path(name)


def write_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Create the folder `target` atomically; `fill(folder)` writes its files. An older `target` is replaced last.

    Raises OSError with a plain message when the disk is full; the older checkpoint is still there then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".writing-{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        sums = {p.name: _sha256(p) for p in sorted(temporary.iterdir())}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2))
        for path in temporary.iterdir():
            _fsync(path)
        _fsync(temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            free_mb = shutil.disk_usage(target.parent).free / 1e6
            raise OSError(
                errno.ENOSPC,
                f"disk full while saving {target.name} ({free_mb:.0f} MB free); earlier checkpoints are intact",
            ) from error
        raise
    if target.exists():
        older = target.with_name(f".replaced-{target.name}-{os.getpid()}")
        target.rename(older)
        temporary.rename(target)
        shutil.rmtree(older, ignore_errors=True)
    else:
        temporary.rename(target)
    _fsync(target.parent)
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` looks like a finished checkpoint (its checksums are verified on load, not here)."""
    return (folder / "config.json").is_file() and (folder / CHECKSUMS).is_file()


def verify(folder: Path) -> None:
    """Raise ValueError if `folder` is not a checkpoint, or if a file is missing or damaged."""
    if not is_checkpoint(folder):
        raise ValueError(
            f"no checkpoint at '{folder}': expected a folder with config.json and {CHECKSUMS} "
            "(for a training run, name <run>/checkpoints/last)"
        )
    for name, expected in json.loads((folder / CHECKSUMS).read_text()).items():
        if not (folder / name).is_file():
            raise ValueError(f"checkpoint '{folder}' is incomplete: {name} is missing; use an earlier one")
        if _sha256(folder / name) != expected:
            raise ValueError(
                f"checkpoint '{folder}' is damaged: {name} does not match its checksum; use an earlier one"
            )


def steps_in(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first: <run>/checkpoints/<step>."""
    folder = run / "checkpoints"
    found = [p for p in folder.iterdir() if p.name.isdigit() and is_checkpoint(p)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name))


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what killed writers left behind."""
    best = (run / "checkpoints" / "best").resolve()
    for old in steps_in(run)[:-keep] if keep > 0 else []:
        if old.resolve() != best:
            shutil.rmtree(old, ignore_errors=True)
    for left in (run / "checkpoints").glob(".*-[0-9]*-[0-9]*"):
        shutil.rmtree(left, ignore_errors=True)


def point(run: Path, name: str, checkpoint: Path) -> None:
    """Make <run>/checkpoints/<name> ("last", "best") a link to `checkpoint`, atomically."""
    link = run / "checkpoints" / name
    temporary = link.with_name(f".{name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, link)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors."""
    return load_file(path)
