# SPDX-License-Identifier: Apache-2.0
"""Does the unmodified client of openpi drive our server, with an old and with the newest `websockets`?

    python benchmarks/openpi/run.py          (make test-openpi)

makes two environments of their own in --out, installs openpi-client 0.1.2 from the package index, starts `vla serve`
with the shipped policy and a key, and lets `drive.py` loose on it. Its actions must be those of our own client, bit for
bit. Writes benchmarks/results/openpi_client.json.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(ROOT)

CLIENT = "openpi-client==0.1.2"
FORGOTTEN = "typing-extensions"
"""Imported by it, and not among its requirements."""
WEBSOCKETS = {"old": "websockets==11.0.3", "newest": "websockets"}
KEY = "a-key-for-this-check"


def main() -> dict[str, Any]:
    """Run all, write and show the results. RuntimeError if an environment or the server could not be had."""
    from rich.console import Console

    from vla.bench.results import Row, default_path, results, show, write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/openpi"), help="folder of the environments")
    out = parser.parse_args().out.resolve()
    rows = []
    with Served() as port:
        ours = our_chunk(port)
        for name, wanted in WEBSOCKETS.items():
            python = environment(out / name, wanted)
            found = driven(python, port)
            checks = {**found["checks"], "the same actions as our client": same(found, ours)}
            failed = [check for check, passed in checks.items() if not passed]
            note = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
            row = Row(f"openpi_websockets_{name}", sum(checks.values()), "checks", len(checks), note=note)
            note = f"{note}; failed: {', '.join(failed)}" if failed else note
            rows.append(replace(row, note=note, goal=f"{len(checks)}", passes=not failed))
    made = results("openpi_client", rows, {})
    write(made, default_path("openpi_client", out))
    show(made, Console(highlight=False))
    return made


class Served:
    """`vla serve` in a process of its own, with the shipped policy. Entering it gives the port."""

    def __enter__(self) -> int:
        command = [sys.executable, "-m", "vla.cli", "serve", "--port", "0", "--threads", "1", "--device", "cpu"]
        environment = {**os.environ, "VLA_API_KEY": KEY}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "listens on ws://" not in line:
            raise RuntimeError(f"expected the server to say where it listens, got '{line.strip()}'")
        return int(line.split(":")[2].split()[0])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(15)


def environment(folder: Path, websockets: str) -> Path:
    """The Python of a fresh environment with openpi's client and these `websockets`."""
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
    python = folder / "bin" / "python"
    base = getattr(sys, "_base_executable", sys.executable)
    for command in (
        [uv, "venv", "--quiet", "--python", base, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), CLIENT, FORGOTTEN, websockets],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"'{' '.join(command[1:4])} ...' failed: {done.stderr.strip()[-500:]}")
    return python


def driven(python: Path, port: int) -> dict[str, Any]:
    """What `drive.py` found."""
    command = [str(python), str(Path(__file__).with_name("drive.py")), str(port), KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"openpi's client failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def our_chunk(port: int) -> np.ndarray:
    """What our own client gets for the observation of `drive.py`, float32 (H, A)."""
    from vla.serve.client import PolicyClient

    with PolicyClient(port=port, api_key=KEY) as client:
        metadata = client.metadata
        size = metadata["image_size"]
        picture = (np.arange(size * size * 3, dtype=np.uint32).reshape(size, size, 3) % 251).astype(np.uint8)
        state = np.linspace(-0.1, 0.1, len(metadata["state_names"]), dtype=np.float32)
        asked = {f"observation/{camera}": picture for camera in metadata["cameras"]}
        reply = client.infer(
            {**asked, "observation/state": state, "prompt": "push the red block to the left", "seed": 3}
        )
        return reply["actions"]


def same(found: dict[str, Any], ours: np.ndarray) -> bool:
    return base64.b64decode(found["actions"]) == ours.tobytes()


if __name__ == "__main__":
    sys.exit(any(row["passes"] is False for row in main()["rows"]))
