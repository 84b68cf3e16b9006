# SPDX-License-Identifier: Apache-2.0
"""A policy on disk: config.json, model.safetensors and what the tokenizers write, in a checkpoint folder."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vla import checkpoint
from vla.diffusion import Sampling
from vla.model import LatticeModel, ModelConfig, low_bit
from vla.tokenizers import Tokenizers


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of a policy."""

    model: LatticeModel
    tokenizers: Tokenizers
    fps: float
    sampling: Sampling
    n_action_steps: int
    trained: tuple[str, ...]
    """The queries that it was trained to answer."""


def write(folder: Path, policy: Stored, extra: dict[str, Any] | None = None) -> None:
    """Write the files into `folder` (within `checkpoint.write_folder`). `extra`: more for config.json."""
    config = {
        "version": checkpoint.VERSION,
        "type": "lattice",
        "model": {f.name: getattr(policy.model.config, f.name) for f in fields(ModelConfig) if f.init},
        "sampling": asdict(policy.sampling),
        "n_action_steps": policy.n_action_steps,
        "fps": policy.fps,
        "queries": list(policy.trained),
        **(extra or {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    checkpoint.save_tensors(dict(policy.model.state_dict()), folder / "model.safetensors")
    policy.tokenizers.save(folder)


def read(path: str | Path) -> Stored:
    """Read a folder, or a shipped checkpoint by its name. ValueError: missing, damaged, or of another version."""
    folder = checkpoint.resolve(path)
    checkpoint.verify(folder)
    config = json.loads((folder / "config.json").read_text())
    if config.get("version") != checkpoint.VERSION:
        raise ValueError(
            f"checkpoint '{folder}' has version {config.get('version')}, this release reads {checkpoint.VERSION}: "
            "train it again, or use the release that made it"
        )
    model = LatticeModel(ModelConfig(**config["model"]))
    tensors = checkpoint.load_tensors(folder / "model.safetensors")
    model.load_state_dict(low_bit.unpack(tensors) if "low_bit" in config else tensors)
    if "low_bit" in config:
        low_bit.run_in_integers(model, tensors)
    return Stored(
        model,
        Tokenizers.load(folder),
        config["fps"],
        Sampling(**config["sampling"]),
        config["n_action_steps"],
        tuple(config["queries"]),
    )
