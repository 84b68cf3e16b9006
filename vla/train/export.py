# SPDX-License-Identifier: Apache-2.0
"""`vla export`: a checkpoint without its training state, small enough to ship to a robot."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

TRAINING_ONLY = ("training.safetensors", "training.json", "checksums.json")


@dataclass(frozen=True)
class ExportConfig:
    """Copy what acts (weights, configuration, tokenizers) and leave what only training needs."""

    checkpoint: Path
    """Checkpoint folder, e.g. runs/mine/train/checkpoints/last."""
    out: Path
    """Folder to write; it must not exist."""
    half: bool = False
    """Store numbers in 16 bits: half the size. They are 32 again when the checkpoint is loaded."""


def export(config: ExportConfig) -> Path:
    """Write the deployment checkpoint atomically and return its folder. ValueError if `out` exists."""
    from vla import checkpoint
    from vla.model import low_bit

    source = config.checkpoint.resolve()
    checkpoint.verify(source)
    if config.out.exists():
        raise ValueError(f"the folder '{config.out}' exists; give another --out or delete it")

    def fill(folder: Path) -> None:
        for path in source.iterdir():
            if path.is_file() and path.name not in TRAINING_ONLY:
                shutil.copyfile(path, folder / path.name)
        if config.half:
            about = json.loads((folder / "config.json").read_text())
            tensors = checkpoint.load_tensors(source / "model.safetensors")
            if "low_bit" not in about:
                checkpoint.save_tensors(low_bit.pack(tensors, (), 8), folder / "model.safetensors")
                about["low_bit"] = {"bits": 16}
                (folder / "config.json").write_text(json.dumps(about, indent=2))

    folder = checkpoint.write_folder(config.out, fill)
    size_mb = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    print(f"exported '{config.checkpoint}' to '{folder}' ({size_mb:.1f} MB)")
    return folder
