# SPDX-License-Identifier: Apache-2.0
"""`vla train-tokenizer image`: fit the image tokenizer to a dataset's pictures, all cameras together.

What is minimised is the error of each pixel, weighted: a pixel that differs from its camera's background, in
the picture or in the reconstruction, counts `foreground` times more. Without it, what is learnt first is the table,
which needs no code, and a block of five pixels is averaged away.

Batches are a function of (seed, step). The rounding's gradient comes from FSQ of vector-quantize-pytorch (extra
`train`); the tokenizer itself does not need that package.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from vla.data.cache import FrameCache
    from vla.tokenizers.image import ImageTokenizer


@dataclass(frozen=True)
class TokenizerConfig:
    """Fit a tokenizer to a LeRobotDataset (v3)."""

    kind: Positional[Literal["image"]]
    """What it tokenizes. (Actions and words need no training of their own: vla train fits those.)"""
    dataset: str
    """Folder of the dataset, or a hub repository id."""
    out: Path = Path("runs/image_tokenizer")
    """Folder to write: the tokenizer, how good it is (training.json), and pictures to look at (pictures.png)."""
    image_size: int = 64
    """Side of the pictures, a multiple of 8 from 64 to 128: one code for 8 x 8 pixels."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Radices of a code's digits, each at least 3."""
    width: int = 64
    """Channels of the network, a multiple of 16."""
    background: bool = True
    """Learn how pictures differ from what a camera usually shows, where the camera stands still."""
    foreground: float = 20.0
    """How many times a pixel counts that differs from the background."""
    minutes: float = 5.0
    """Wall-clock of the training; measuring comes on top."""
    steps: int | None = None
    """Optimiser steps, instead of minutes."""
    batch_size: int = 32
    """Pictures of a step."""
    lr: float = 2e-3
    seed: int = 0
    device: str = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: int = 0
    """CPU threads of torch; 0: all cores."""
    overwrite: bool = False
    """Replace `out`, once the new tokenizer is finished."""


WARMUP = 100
HOLDOUT = 0.1
"""Part of the episodes that are measured and not learnt from."""
_BACKGROUND_PICTURES = 500
_FULL = 48.0
"""Of 255: a pixel that differs this much from the background has the full weight; less, proportionally less."""
_SAY_S = 15.0


def train_tokenizer(config: TokenizerConfig, *, console: "Console | None" = None) -> dict[str, Any]:
    """Train, measure, write `out`, print a table. Returns what is measured (`vla.train.image_probe.measure`) and
    {"out", "parameters", "positions", "steps", "elapsed_s", "pictures_per_s", "encode_per_s"}.

    ValueError for a missing dataset, one without cameras or with less than two episodes, an existing `out`.
    """
    import torch
    from rich.console import Console

    from vla.checkpoint import write_folder
    from vla.data.batches import split_episodes
    from vla.data.cache import open_cache
    from vla.tokenizers.image import ImageTokenizer
    from vla.train.image_probe import measure, save_pictures, show
    from vla.train.setup import keep_freed_memory

    if config.out.exists() and not config.overwrite:
        raise ValueError(f"the folder '{config.out}' exists; give another --out, or --overwrite")
    if (config.steps or 1) < 1 or not config.minutes > 0 or config.batch_size < 1:
        raise ValueError(
            "expected --steps >= 1, --minutes > 0 and --batch-size >= 1, got "
            f"{config.steps}, {config.minutes} and {config.batch_size}"
        )
    console = console or Console(highlight=False)
    keep_freed_memory()
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = ImageTokenizer(config.image_size, config.levels, config.width)  # refuses before data are decoded
    cache = open_cache(config.dataset, image_size=config.image_size, console=console)
    if not cache.cameras or len(cache.episode_from) < 2:
        raise ValueError(
            f"expected a dataset with cameras and two episodes or more, got {len(cache.cameras)} cameras and "
            f"{len(cache.episode_from)} episodes in '{config.dataset}'"
        )
    learn, held = split_episodes(cache, HOLDOUT, config.seed)
    if config.background:
        tokenizer = with_backgrounds(tokenizer, cache, learn, console)
    tokenizer = tokenizer.to(device)

    steps, elapsed_s = _fit(tokenizer, cache, learn, config, console)
    results = {
        "out": str(config.out),
        "parameters": tokenizer.parameter_count,
        "positions": tokenizer.positions,
        "steps": steps,
        "elapsed_s": round(elapsed_s, 1),
        "pictures_per_s": round(steps * config.batch_size / elapsed_s),
        **measure(tokenizer.eval(), cache, learn, held),
    }

    def fill(folder: Path) -> None:
        tokenizer.save(folder)
        # Where things lie on this machine says nothing to anybody else.
        about = {k: v for k, v in asdict(config).items() if k not in ("dataset", "out")}
        about |= {"dataset": Path(config.dataset).name}
        (folder / "training.json").write_text(
            json.dumps({"config": about, "results": {k: v for k, v in results.items() if k != "out"}}, indent=2)
        )
        save_pictures(tokenizer, cache, held, folder / "pictures.png")

    write_folder(config.out, fill)
    show(results, console)
    return results


def with_backgrounds(
    tokenizer: "ImageTokenizer", cache: "FrameCache", episodes: Any, console: "Console"
) -> "ImageTokenizer":
    """The same network, with a background for every camera of the dataset, out of the pictures of some episodes."""
    import numpy as np
    import torch

    from vla.tokenizers.image import ImageTokenizer

    fitted = ImageTokenizer(tokenizer.image_size, tokenizer.levels, tokenizer.width, cache.cameras)
    fitted.encoder, fitted.decoder = tokenizer.encoder, tokenizer.decoder
    frames = np.concatenate([np.arange(cache.episode_from[e], cache.episode_to[e]) for e in episodes])
    some = frames[np.linspace(0, len(frames) - 1, min(len(frames), _BACKGROUND_PICTURES)).astype(np.int64)]
    for camera in cache.cameras:
        still = fitted.fit_background(torch.from_numpy(cache.frames[camera][some]), camera)
        console.print(f"camera '{camera}' {'stands still' if still else 'moves: no background'}", highlight=False)
    return fitted


def pixel_error(made_BHWC: "torch.Tensor", image_BHWC: "torch.Tensor", background_HWC: "torch.Tensor", weight: float):
    """Error of float pictures, 0..255, a scalar; a pixel that differs from the background in either of them counts up
    to `weight` times more. In both, or the network could draw blocks where there are none for a low price.

    The absolute error e, and its square: e + e^2 / 127.5. The square finds shapes sooner, the other keeps edges sharp.
    """
    import torch

    with torch.no_grad():
        differs_BHW = torch.maximum((image_BHWC - background_HWC).abs(), (made_BHWC - background_HWC).abs()).amax(-1)
        weight_BHW = 1 + (weight - 1) * (differs_BHW / _FULL).clamp(max=1)
        weight_BHW /= weight_BHW.sum()
    error_BHWC = (made_BHWC - image_BHWC).abs()
    return ((error_BHWC * (1 + error_BHWC / 127.5)).mean(-1) * weight_BHW).sum()


def _fit(
    tokenizer: "ImageTokenizer", cache: "FrameCache", episodes: Any, config: TokenizerConfig, console: "Console"
) -> tuple[int, float]:
    """Returns (steps, seconds)."""
    import torch
    from vector_quantize_pytorch import FSQ

    from vla.data.batches import Batches
    from vla.train.loop import FIT_AGAIN, FIT_FROM
    from vla.train.setup import fit_steps

    device = tokenizer.backgrounds_CHWC.device
    fsq = FSQ(list(config.levels), return_indices=False).to(device)
    batches = Batches(cache, 1, max(config.batch_size // len(cache.cameras), 1), config.seed, episodes)
    optimiser = torch.optim.AdamW(
        tokenizer.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    total = limit = config.steps or 10**9
    began = said = time.perf_counter()
    rate_from, rate_step, step = began, 0, 0
    while step < total:
        if config.steps is None and (step == FIT_FROM or (step and step % FIT_AGAIN == 0)):
            measured_s = time.perf_counter() - rate_from
            total = fit_steps(step - rate_step, measured_s, config.minutes, began, step, limit)
        if step == 10 or step % FIT_AGAIN == 0:
            rate_from, rate_step = time.perf_counter(), step
        for group in optimiser.param_groups:
            group["lr"] = config.lr * _schedule(step, total)
        loss = torch.zeros((), device=device)
        for camera, pictures in batches.batch(step)["images"].items():
            image_BHWC = torch.from_numpy(pictures[:, -1]).to(device)
            made_BHWC = tokenizer(image_BHWC, camera, lambda z_BND: fsq(z_BND)[0])
            background_HWC = tokenizer.background(camera).float()
            loss = loss + pixel_error(made_BHWC, image_BHWC.float(), background_HWC, config.foreground)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 10.0)
        optimiser.step()
        step += 1
        if step == total or time.perf_counter() - said > _SAY_S:
            said = time.perf_counter()
            value = loss.item() / len(cache.cameras)
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} at step {step}: lower --lr, now {config.lr}")
            console.print(f"train  {step}/{total}  error {value:.2f} of 255, weighted", highlight=False)
    return step, time.perf_counter() - began


def _schedule(step: int, total: int) -> float:
    """Linear warm-up, then a cosine to 1 %."""
    warmup = min(WARMUP, max(total // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
