# SPDX-License-Identifier: Apache-2.0
"""How a training run is saved and found again (`vla/checkpoint.py` says what is in the folder).

Where every process has a slice of the parameters, each writes its own into training-<r>-of-<W>.safetensors, and the
folder is finished by process 0 when all have. To read them, a tensor's slices are put together again, one tensor at a
time, so that a run goes on with any number of processes, sharded or not.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vla import checkpoint, processes, recipes
from vla.train.parallel import own, slice_of
from vla.train.session import Session

WHOLE = "training.safetensors"
_SLICE = re.compile(r"training-(\d+)-of-(\d+)\.safetensors")


def save(
    run: Path, s: Session, config: Any, step: int, total: int, validation: dict[str, float], current: bool
) -> Path:
    """Write <run>/checkpoints/<step>, point `last` at it, and `best` if no checkpoint had a lower validation loss.

    `validation`: what was measured last; `current`: of these very weights. Every process has to call it.
    """
    target = run / "checkpoints" / f"{step:07d}"
    policy = s.policy()

    def fill(folder: Path) -> None:
        recipe = {"name": config.recipe, **recipes.to_dict(s.recipe)}
        policy.write(folder, {"recipe": recipe, "step": step, "validation": validation})
        about = {
            "step": step,
            "total": total,
            "seed": s.seed,
            "processes": processes.world(),
            "config": {k: str(v) for k, v in asdict(config).items()},
        }
        (folder / "training.json").write_text(json.dumps(about, indent=2))
        write_slices(folder, s)

    if processes.rank() == 0:
        checkpoint.write_folder(target, fill)
        checkpoint.point(run, "last", target)
        if current and "val_loss" in validation and validation["val_loss"] <= lowest_loss(run):
            checkpoint.point(run, "best", target)
        checkpoint.prune(run, config.keep)
    else:
        write_slices(None, s)
    processes.wait()
    return target


def write_slices(folder: Path | None, s: Session) -> None:
    """The raw weights and the optimiser's moments. `folder`: process 0 knows it, and tells the others."""
    if not s.sharded:
        if folder is not None:
            checkpoint.save_tensors({name: own(x) for name, x in tensors(s)}, folder / WHOLE)
        return
    folder = Path(processes.first_text(str(folder)))
    error: OSError | None = None
    try:
        name = f"training-{processes.rank():05d}-of-{processes.world():05d}.safetensors"
        checkpoint.save_tensors({name: own(x) for name, x in tensors(s)}, folder / name)
    except OSError as failed:
        error = failed
    failures = processes.mean(torch.tensor(float(error is not None), device=s.device))  # all must know: none waits
    if error is not None:
        raise error
    if failures > 0:
        raise OSError(f"another process could not write its part of '{folder.name}'; earlier checkpoints are intact")


def tensors(s: Session) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that training needs beside the averaged weights, which are in model.safetensors."""
    for name, x in s.model.state_dict().items():
        yield f"model.{name}", x
    for index, moments in s.optimiser.state_dict()["state"].items():
        for name, x in moments.items():
            yield f"optimiser.{index}.{name}", x


def lowest_loss(run: Path) -> float:
    """The validation loss of the checkpoint `best`, infinity if there is none."""
    file = run / "checkpoints" / "best" / "config.json"
    return json.loads(file.read_text())["validation"].get("val_loss", float("inf")) if file.exists() else float("inf")


def newest_sound(run: Path, say: Any = print) -> Path | None:
    """The newest checkpoint of a run whose files all match their checksums; None if there is none.

    One that does not is passed over, which is said, and is left where it is.
    """
    for folder in reversed(checkpoint.steps_in(run)):
        try:
            checkpoint.verify(folder)
        except ValueError as error:
            say(f"{error}; going on from the one before")
        else:
            return folder
    return None


def load_training(folder: Path, s: Session, steps: int | None) -> tuple[int, int]:
    """Restore weights, averages and optimiser from a sound checkpoint. Returns (step, total steps)."""
    about = json.loads((folder / "training.json").read_text())
    found = _Tensors(folder)
    with torch.no_grad():
        averages = checkpoint.load_tensors(folder / "model.safetensors")
        for name, x in s.averaged.state_dict().items():
            own(x).copy_(slice_of(averages[name], x))
        for name, x in s.model.state_dict().items():
            own(x).copy_(slice_of(found[f"model.{name}"], x))
    parameters = [p for group in s.optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name in found.files:
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = _like(found[name], parameters[int(index)])
    state = s.optimiser.state_dict()
    s.optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    return about["step"], steps or about["total"]


def _like(x: Tensor, parameter: Tensor) -> Tensor:
    """A whole moment of the optimiser, sliced as its parameter is. (The count of steps is a scalar, and stays.)"""
    from torch.distributed.tensor import DTensor

    if not isinstance(parameter, DTensor) or not x.ndim:
        return x
    mine = slice_of(x, parameter).contiguous().to(parameter.device)
    return DTensor.from_local(
        mine, parameter.device_mesh, parameter.placements, run_check=False, shape=x.shape, stride=x.stride()
    )


class _Tensors:
    """The tensors of training.safetensors, or of its slices, one at a time. `files`: name -> the files that have it."""

    def __init__(self, folder: Path) -> None:
        slices = sorted(p for p in folder.iterdir() if _SLICE.fullmatch(p.name))
        paths = slices or [folder / WHOLE]
        if slices and len(slices) != int(_SLICE.fullmatch(slices[0].name).group(2)):  # type: ignore[union-attr]
            raise ValueError(f"expected all slices of '{folder}', found {len(slices)}: {slices[0].name}, ...")
        self._open = [safe_open(path, "pt") for path in paths]
        self.files: dict[str, list[int]] = {}
        for number, file in enumerate(self._open):
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                self.files.setdefault(name, []).append(number)
        self._whole = self._not_sliced(folder) if slices else set(self.files)

    def _not_sliced(self, folder: Path) -> set[str]:
        """Scalars and buffers are whole in every slice. A buffer is what the averaged weights have, as large."""
        shapes = {}
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {f"model.{name}": list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        own_shape = {name: list(self._open[files[0]].get_slice(name).get_shape()) for name, files in self.files.items()}
        return {name for name, shape in own_shape.items() if not shape or shape == shapes.get(name)}

    def __getitem__(self, name: str) -> Tensor:
        pieces = [self._open[number].get_tensor(name) for number in self.files[name]]
        return pieces[0] if name in self._whole else torch.cat(pieces)
