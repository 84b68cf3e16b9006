# SPDX-License-Identifier: Apache-2.0
"""A run folder with the shape of a demo's and made-up contents: for the report's tests, and to look at a
report.

Every number in it is synthetic; the instructions say so.
"""

import base64
import io
import json
import math
from pathlib import Path

import numpy as np

from vla.eval.episodes import EpisodeResult, write_results
from vla.eval.manifest import manifest
from vla.eval.summary import summarize
from vla.eval.video import write_video

NAMES = ["dx", "dy", "dz", "gripper"]
RATES = {"policy": 0.955, "swapped": 0.04, "random": 0.015}


def scene(size: int, t: float, colour: tuple[int, int, int]) -> np.ndarray:
    image = np.full((size, size, 3), (206, 201, 192), dtype=np.uint8)
    for i, c in enumerate([(200, 40, 40), (40, 90, 210), (60, 160, 70), (220, 180, 50)]):
        x, y = int(size * (0.2 + 0.18 * i)), int(size * (0.3 + 0.35 * (i % 2)))
        image[y : y + size // 9, x : x + size // 9] = c
    x, y = int(size * (0.15 + 0.6 * t)), int(size * (0.75 - 0.4 * t))
    image[y - size // 20 : y + size // 20, x - size // 20 : x + size // 20] = colour
    return image


def write_evaluation(folder: Path, kind: str, episodes: int = 200, videos: bool = True) -> None:
    generator = np.random.Generator(np.random.Philox(key=len(kind)))
    results = []
    for i in range(episodes):
        task, seed = ("reach", "push")[i % 2], i // 2
        success = bool(generator.random() < RATES[kind] - 0.03 * (task == "push" and kind == "policy"))
        told = f"{task} the {('red', 'blue')[i % 3 == 0]} block (synthetic)"
        given = told if kind != "swapped" else f"{task} the green block (synthetic)"
        length = int(generator.integers(14, 30)) if success else 60
        results.append(EpisodeResult(task, seed, told, given, success, length, "0" * 64, 0.2, -(-length // 8)))
    results = write_results(folder / "episodes.jsonl", results)
    summary = summarize(kind, "demo", "tabletop", results, [21.5, 22.0, 30.1], 1234.5, manifest("llvmpipe (synthetic)"))
    (folder / "summary.json").write_text(json.dumps(summary))
    if not videos:
        return
    for task in ("reach", "push"):
        for success in (True, False):
            for r in [r for r in results if r.task == task and r.success == success][:2]:
                colour = (20, 20, 24) if success else (120, 20, 20)
                frames = [scene(192, t, colour) for t in np.linspace(0, 1, 12)]
                name = f"{task}_{r.seed}_{'success' if success else 'failure'}.mp4"
                write_video(folder / "videos" / name, frames, 10)


def write_metrics(path: Path, steps: int = 4000) -> None:
    generator = np.random.Generator(np.random.Philox(key=5))
    lines = []
    for step in range(10, steps + 1, 10):
        base = 0.22 + 2.6 * math.exp(-step / 500) + 0.5 * math.exp(-step / 2200)
        coarse, fine = base * 0.7 * generator.lognormal(0, 0.09), base * 1.25 * generator.lognormal(0, 0.07)
        row = {
            "step": step,
            "loss": (coarse + fine) / 2,
            "loss_coarse": coarse,
            "loss_fine": fine,
            "lr": 1e-3,
        }
        row |= {"grad_norm": 1.0, "steps_per_s": 12.0, "elapsed_s": step / 12}
        lines.append(row | {"frames_per_s": 820 + 25 * generator.standard_normal() - (step < 100) * 300})
        if step % 250 == 0:
            lines.append({"step": step, "val_loss": base * 1.06, "val_mae": 0.04 + 0.3 * math.exp(-step / 700)})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def denoise(horizon: int = 8, denoising_steps: int = 4) -> dict:
    from PIL import Image

    generator = np.random.Generator(np.random.Philox(key=9))
    t = np.arange(horizon)
    final = np.stack([0.7 * np.cos(t / 4), 0.5 * np.sin(t / 3), -0.6 + t / 12, np.where(t > 4, 1.0, -1.0)], axis=1)
    bins = np.clip((final + 1) / 2 * 255, 0, 255).astype(int)
    order = generator.random((horizon, 4))
    steps = []
    for e in range(1, denoising_steps + 1):
        coarse = order < min(1.0, 2 * e / denoising_steps)
        fine = order < max(0.0, 2 * e / denoising_steps - 1)
        confidence = np.clip(0.35 + 0.6 * e / denoising_steps + 0.15 * generator.standard_normal(order.shape), 0, 1)
        known = np.stack([coarse, fine], axis=-1)
        digits = np.where(known, np.stack([bins // 16, bins % 16], axis=-1), -1)
        rows = zip(final, fine, strict=True)
        value = [[float(v) if k else None for v, k in zip(*pair, strict=True)] for pair in rows]
        steps.append(
            {
                "name": f"step {e}",
                "known": known.astype(int).tolist(),
                "digits": digits.tolist(),
                "confidence": confidence.tolist(),
                "value": value,
            }
        )
    picture = io.BytesIO()
    Image.fromarray(scene(256, 0.1, (20, 20, 24))).save(picture, format="PNG")
    return {
        "instruction": "push the blue block to the left (synthetic)",
        "camera": "front",
        "image_png_base64": base64.b64encode(picture.getvalue()).decode(),
        "action_names": NAMES,
        "horizon": horizon,
        "steps": steps,
        "final": final.tolist(),
    }


def write_run(folder: Path, videos: bool = True) -> Path:
    """A whole demo run folder. Returns it."""
    for kind in RATES:
        (folder / "eval" / kind).mkdir(parents=True)
        write_evaluation(folder / "eval" / kind, kind, videos=videos and kind == "policy")
    write_metrics(folder / "train" / "metrics.jsonl")
    (folder / "denoise.json").write_text(json.dumps(denoise()))
    info = {
        "total_episodes": 6000,
        "total_frames": 131_000,
        "total_tasks": 24,
        "fps": 10,
        "codebase_version": "v3.0",
    }
    (folder / "dataset" / "meta").mkdir(parents=True)
    (folder / "dataset" / "meta" / "info.json").write_text(json.dumps(info))
    rows = [
        {"id": "success", "value": 0.955, "unit": "fraction", "goal": "at least 0.9", "passes": True},
        {"id": "minutes", "value": 10.9, "unit": "min", "goal": "at most 12", "passes": True},
    ]
    seconds = {"record": 96.0, "train": 390.0, "eval": 120.0, "report": 4.0}
    about = {
        "seconds": seconds,
        "training": {"recipe": "tabletop_nano", "parameters": 1_250_000, "steps": 4000},
    }
    (folder / "demo.json").write_text(json.dumps({"bench": "demo", "rows": rows, "facts": about}))
    return folder
