# SPDX-License-Identifier: Apache-2.0
"""What survives an image tokenizer, on held-out episodes: pixels, colours, places.

The mean error of all pixels says little where most of them never change: the plain background already reaches
`psnr_background_db`. Hence three more looks:

- `foreground_psnr_db`: of the pixels alone that differ from the camera's background by more than 24 of 255. For a
  camera that moves (its background is grey) that is nearly all of them.
- `state`: how well the robot's state can be read from a picture by a small keypoint network (`vla.model.vision`, half a
  minute of training on *original* pictures at half the size). Reported is its root mean square error on held-out
  originals and on their reconstructions, in standard deviations of each dimension of the state. The ratio of the two
  means is 1 if the robot is as easy to find as before. It measures the robot, not what lies on the table, and only as
  sharply as the network reads originals.
- `colours`, where the dataset is the tabletop's: pixels are sorted by hue into the colours that its blocks and zones
  have, in the original and in the reconstruction. Intersection over union by colour; how many pixels keep their colour
  if they keep any; of the objects with 10 pixels or more, how many are lost (a quarter of the pixels or less is left),
  and how far the others' centres have moved, in pixels, mean and 95 %.

Shapes: M pictures, H W pixels, S values of the state, N positions, D digits.
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.data.cache import FrameCache
from vla.envs.tabletop.scene import COLOURS
from vla.model.vision import KeypointStem
from vla.tokenizers.image import ImageTokenizer

if TYPE_CHECKING:
    from rich.console import Console

HELD_PICTURES = 1000
LEARN_PICTURES = 10_000
"""Of one camera: how many are measured, and how many the state is learnt from."""
_FOREGROUND = 24
_CHROMA = 50
"""Of 255: the largest channel minus the smallest; a pixel with less of it has no colour."""
_OBJECT = 10
_BATCH = 100


def measure(tokenizer: ImageTokenizer, cache: FrameCache, learn: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Measure on pictures of the episodes `held`; `learn`: those the tokenizer was trained on.

    psnr_db, foreground_psnr_db, and both if the background alone were drawn (..._background_db); usage: the part of all
    codes that occurs; perplexity: of each digit, the number of values it uses as if evenly; encode_per_s: pictures, in
    batches of 100; state and colours as above, None where there is no state or no tabletop. All cameras together.
    """
    pictures = {c: _pictures(cache, c, _some(cache, held, HELD_PICTURES)) for c in cache.cameras}
    made, digits, seconds = {}, [], 0.0
    for camera, image_MHWC in pictures.items():
        began = time.perf_counter()
        parts = [_encode(tokenizer, part, camera) for part in image_MHWC.split(_BATCH)]
        seconds += time.perf_counter() - began
        digits += parts
        made[camera] = torch.cat([_decode(tokenizer, part, camera) for part in parts])
    digits_XD = torch.cat(digits).flatten(0, 1)
    about = cache.meta.get("info") or {}
    return {
        **_fidelity(tokenizer, pictures, made),
        "usage": len(tokenizer.numerals.to_index(digits_XD).unique()) / tokenizer.numerals.count,
        "perplexity": [perplexity(digits_XD[:, d]) for d in range(tokenizer.digits)],
        "encode_per_s": round(sum(map(len, pictures.values())) / seconds),
        "state": read_state(cache, learn, held, pictures, made),
        "colours": keep_colours(pictures, made) if about.get("robot_type") == "tabletop" else None,
    }


def perplexity(digit_X: Tensor) -> float:
    """exp of the entropy of int64 (X,)."""
    share_V = torch.bincount(digit_X).double() / len(digit_X)
    return float(torch.exp(torch.special.entr(share_V).sum()))


def _fidelity(tokenizer: ImageTokenizer, pictures: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, float]:
    """Peak signal to noise, dB, over all pixels of all pictures."""
    squares = torch.zeros(4, dtype=torch.float64)
    counts = torch.zeros(4, dtype=torch.float64)
    for camera, image_MHWC in pictures.items():
        background_HWC = tokenizer.background(camera).cpu().to(torch.int16)
        for image, copy in zip(image_MHWC.split(_BATCH), made[camera].split(_BATCH), strict=True):
            differs = image.to(torch.int16) - background_HWC
            wrong = (image.to(torch.int16) - copy.to(torch.int16)).double().square()
            front = differs.abs().amax(-1) > _FOREGROUND
            plain = differs.double().square()  # what would be wrong if nothing but the background were drawn
            squares += torch.stack([wrong.sum(), wrong[front].sum(), plain.sum(), plain[front].sum()])
            counts += torch.tensor([wrong.numel(), 3 * int(front.sum())] * 2)
    names = ("psnr_db", "foreground_psnr_db", "psnr_background_db", "foreground_psnr_background_db")
    return dict(zip(names, (10 * torch.log10(255**2 / (squares / counts).clamp(min=1e-9))).tolist(), strict=True))


def read_state(
    cache: FrameCache, learn: np.ndarray, held: np.ndarray, pictures: dict[str, Tensor], made: dict[str, Tensor]
) -> dict[str, Any] | None:
    """{"original": {dimension: error}, "reconstructed": {...}, "ratio"}, of all cameras side by side; None without a
    state that changes."""
    ids, held_ids = _some(cache, learn, LEARN_PICTURES), _some(cache, held, HELD_PICTURES)
    mean_S, spread_S = cache.state[ids].mean(0), cache.state[ids].std(0)
    moves_S = spread_S > 1e-6
    if not moves_S.any():
        return None
    state_MS, held_MS = (
        torch.from_numpy((cache.state[i] - mean_S)[:, moves_S] / spread_S[moves_S]) for i in (ids, held_ids)
    )
    halves = {camera: _half(_pictures(cache, camera, ids)) for camera in cache.cameras}
    read = learn_to_read(halves, state_MS)
    names = [name for name, moves in zip(cache.state_names, moves_S, strict=True) if moves]
    errors_S = [(read(some) - held_MS).square().mean(0).sqrt() for some in (pictures, made)]
    original, reconstructed = (dict(zip(names, e.tolist(), strict=True)) for e in errors_S)
    ratio = float(errors_S[1].mean() / errors_S[0].mean())
    return {"original": original, "reconstructed": reconstructed, "ratio": ratio}


def learn_to_read(halves: dict[str, Tensor], state_MS: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """A function from pictures of the full size to the state, float (M, S); a keypoint network a camera, their sum.

    `halves`: uint8 (M, H / 2, W / 2, 3) of each camera. A function of its arguments; at most 600 steps of 32 pictures.
    """
    count, dims = state_MS.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eyes = nn.ModuleList(KeypointStem(dims, tokens=1, keypoints=24) for _ in halves)
    nothing_said = torch.zeros(1, dims)

    def look(some: Iterable[Tensor]) -> Tensor:
        return torch.stack([eye(x, nothing_said)[:, 0] for eye, x in zip(eyes, some, strict=True)]).sum(0)

    steps, lr = min(600, 20 * count // 32 + 1), 6e-3
    optimiser = torch.optim.AdamW(eyes.parameters(), lr=lr, betas=(0.9, 0.98), fused=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min((step + 1) / 30, 0.5 * (1 + math.cos(math.pi * step / steps)))
        picked = torch.randint(count, (32,), generator=generator)
        loss = (look(x[picked] for x in halves.values()) - state_MS[picked]).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def read(pictures: dict[str, Tensor]) -> Tensor:
        parts = zip(*(pictures[camera].split(_BATCH) for camera in halves), strict=True)
        return torch.cat([look(map(_half, some)) for some in parts])

    return read


def _half(image_MHWC: Tensor) -> Tensor:
    """uint8 (M, H, W, 3) -> uint8 (M, H / 2, W / 2, 3)."""
    parts = [F.avg_pool2d(x.permute(0, 3, 1, 2).float(), 2).round() for x in image_MHWC.split(_BATCH)]
    return torch.cat([x.to(torch.uint8).permute(0, 2, 3, 1) for x in parts]).contiguous()


def colour_of(image_MHWC: Tensor) -> Tensor:
    """uint8 (M, H, W, 3) -> int64 (M, H, W): the place in the tabletop's COLOURS of the nearest hue, -1 for none."""
    colours_C3 = torch.tensor(list(COLOURS.values()))
    hue_C3 = F.normalize(colours_C3 - colours_C3.amin(1, keepdim=True), dim=1)
    rise = image_MHWC.float()
    rise = rise - rise.amin(-1, keepdim=True)
    return torch.where(rise.amax(-1) >= _CHROMA, (rise @ hue_C3.T).argmax(-1), -1)


def keep_colours(pictures: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, Any]:
    """{"iou": {colour: ...}, "iou_mean", "right", "lost", "moved_px", "moved_px_95"}; one number each but for "iou"."""
    n = len(COLOURS)
    both, either = torch.zeros(n), torch.zeros(n)
    right = coloured = lost = objects = 0
    moved: list[Tensor] = []
    for camera, image_MHWC in pictures.items():
        was_MHW, is_MHW = colour_of(image_MHWC), colour_of(made[camera])
        kept = (was_MHW >= 0) & (is_MHW >= 0)
        coloured, right = coloured + int(kept.sum()), right + int((kept & (was_MHW == is_MHW)).sum())
        for c in range(n):
            was, now = was_MHW == c, is_MHW == c
            both[c] += (was & now).sum()
            either[c] += (was | now).sum()
            size_M, left_M = was.sum((1, 2)), now.sum((1, 2))
            there_M = size_M >= _OBJECT
            found_M = there_M & (4 * left_M > size_M)
            objects, lost = objects + int(there_M.sum()), lost + int((there_M & ~found_M).sum())
            moved.append((_centre(was[found_M]) - _centre(now[found_M])).norm(dim=1))
    all_moved = torch.cat(moved)
    iou = both / either.clamp(min=1)
    return {
        "iou": dict(zip(COLOURS, iou.tolist(), strict=True)),
        "iou_mean": float(iou[either > 0].mean()) if bool((either > 0).any()) else float("nan"),
        "right": right / max(coloured, 1),
        "lost": lost / max(objects, 1),
        "moved_px": float(all_moved.mean()) if len(all_moved) else float("nan"),
        "moved_px_95": float(all_moved.quantile(0.95)) if len(all_moved) else float("nan"),
    }


def _centre(mask_MHW: Tensor) -> Tensor:
    """float32 (M, 2): row and column of the middle of each mask."""
    mass = mask_MHW.float()
    rows, columns = (mass.sum(axis) @ torch.arange(float(mass.shape[3 - axis])) for axis in (2, 1))
    return torch.stack([rows, columns], dim=1) / mass.sum((1, 2)).clamp(min=1).unsqueeze(1)


# ---- pictures ------------------------------------------------------------------------------------------------------


def _some(cache: FrameCache, episodes: np.ndarray, count: int) -> np.ndarray:
    """At most `count` frames, spread evenly over the episodes, in random order but always the same."""
    frames = np.concatenate([np.arange(cache.episode_from[e], cache.episode_to[e]) for e in episodes])
    some = frames[np.linspace(0, len(frames) - 1, min(len(frames), count)).astype(np.int64)]
    return np.random.default_rng(0).permutation(some)


def _pictures(cache: FrameCache, camera: str, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(cache.frames[camera][ids]))


def _encode(tokenizer: ImageTokenizer, image_MHWC: Tensor, camera: str) -> Tensor:
    return tokenizer.encode(image_MHWC.to(tokenizer.backgrounds_CHWC.device), camera).cpu()


def _decode(tokenizer: ImageTokenizer, digits_MND: Tensor, camera: str) -> Tensor:
    return tokenizer.decode(digits_MND.to(tokenizer.backgrounds_CHWC.device), camera).cpu()


def save_pictures(
    tokenizer: ImageTokenizer, cache: FrameCache, held: np.ndarray, path: Path, count: int = 8, times: int = 3
) -> None:
    """A PNG: for each camera a row of held-out pictures, below it their reconstructions, enlarged."""
    from PIL import Image

    rows = []
    for camera in cache.cameras:
        image_MHWC = _pictures(cache, camera, _some(cache, held, count))
        for some in (image_MHWC, _decode(tokenizer, _encode(tokenizer, image_MHWC, camera), camera)):
            rows.append(torch.cat(list(some), dim=1))
    large = torch.cat(rows).repeat_interleave(times, 0).repeat_interleave(times, 1)
    Image.fromarray(large.numpy()).save(path)


def show(results: dict[str, Any], console: "Console") -> None:
    """A table of what was measured."""
    from rich.table import Table

    table = Table("image tokenizer", "measured")
    for name, value in results.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                text = "  ".join(f"{k} {v:.3f}" for k, v in number.items()) if isinstance(number, dict) else number
                table.add_row(f"{name}: {inner}", _text(text))
        elif value is not None:
            table.add_row(name, _text(value))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_text, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
