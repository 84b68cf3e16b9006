# SPDX-License-Identifier: Apache-2.0
"""What survives an image tokenizer, on held-out episodes: pixels, colours, places.

The mean error of all pixels says little where most of them never change: the plain background already reaches
`psnr_background_db`. Hence three more looks:

- `foreground_psnr_db`: of the pixels alone that differ from the camera's background by more than 24 of 255. For a
  camera that moves (its background is grey) that is nearly all of them.
- `state`: a ridge regression learns to read the robot's state from *original* pictures, and is then asked about
  held-out originals and about their reconstructions. Its root mean square error, in standard deviations of the state,
  averaged over the dimensions. The ratio of the two is 1 if what it looks at is where it was. It reads linearly, so it
  is a blunt judge; and it measures the robot, not what lies on the table.
- `colours`, where the dataset is the tabletop's: pixels are sorted by hue into the colours that its blocks and zones
  have, in the original and in the reconstruction. Intersection over union by colour; how many pixels keep their colour
  if they keep any; of the objects with 10 pixels or more, how many are lost (a quarter of the pixels or less is left),
  and how far the others' centres have moved, in pixels, mean and 95 %.

Shapes: M pictures, H W pixels, F features, S values of the state, N positions, D digits.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla.data.cache import FrameCache
from vla.envs.tabletop.scene import COLOURS
from vla.tokenizers.image import ImageTokenizer

if TYPE_CHECKING:
    from rich.console import Console

HELD_PICTURES = 1000
LEARN_PICTURES = 4000
"""Of one camera: how many are measured, and how many the ridge regression learns from."""
_FOREGROUND = 24
_CHROMA = 50
"""Of 255: the largest channel minus the smallest; a pixel with less of it has no colour."""
_OBJECT = 10
_BATCH = 100


def measure(tokenizer: ImageTokenizer, cache: FrameCache, learn: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Measure on pictures of the episodes `held`; `learn`: those the tokenizer was trained on.

    psnr_db, foreground_psnr_db, psnr_background_db; usage: the part of all codes that occurs; perplexity: of each
    digit, the number of values it uses as if evenly; encode_per_s: pictures, in batches of 100; state and colours as
    above, None where there is no state or no tabletop. All cameras together.
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
        "state": read_state(tokenizer, cache, learn, held, pictures, made),
        "colours": keep_colours(pictures, made) if about.get("robot_type") == "tabletop" else None,
    }


def perplexity(digit_X: Tensor) -> float:
    """exp of the entropy of int64 (X,)."""
    share_V = torch.bincount(digit_X).double() / len(digit_X)
    return float(torch.exp(torch.special.entr(share_V).sum()))


def _fidelity(tokenizer: ImageTokenizer, pictures: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, float]:
    """Peak signal to noise, dB, over all pixels of all pictures."""
    squares = torch.zeros(3, dtype=torch.float64)
    counts = torch.zeros(3, dtype=torch.float64)
    for camera, image_MHWC in pictures.items():
        background_HWC = tokenizer.background(camera).cpu().to(torch.int16)
        for image, copy in zip(image_MHWC.split(_BATCH), made[camera].split(_BATCH), strict=True):
            differs = image.to(torch.int16) - background_HWC
            wrong = (image.to(torch.int16) - copy.to(torch.int16)).double().square()
            front = differs.abs().amax(-1) > _FOREGROUND
            squares += torch.stack([wrong.sum(), wrong[front].sum(), differs.double().square().sum()])
            counts += torch.tensor([wrong.numel(), 3 * int(front.sum()), differs.numel()])
    every, front, nothing = (10 * torch.log10(255**2 / (squares / counts).clamp(min=1e-9))).tolist()
    return {"psnr_db": every, "foreground_psnr_db": front, "psnr_background_db": nothing}


def read_state(
    tokenizer: ImageTokenizer,
    cache: FrameCache,
    learn: np.ndarray,
    held: np.ndarray,
    pictures: dict[str, Tensor],
    made: dict[str, Tensor],
) -> dict[str, Any] | None:
    """{"original", "reconstructed", "ratio"} of the ridge regression, all cameras side by side."""
    if not cache.state.shape[1]:
        return None
    ids, held_ids = _some(cache, learn, LEARN_PICTURES), _some(cache, held, HELD_PICTURES)
    x_MF = _features(tokenizer, {c: _pictures(cache, c, ids) for c in cache.cameras})
    mean_S, spread_S = cache.state[ids].mean(0), cache.state[ids].std(0)
    moves = spread_S > 1e-6  # a value that never changes cannot be learnt
    y_MS, held_MS = ((torch.from_numpy(cache.state[i]) - mean_S)[:, moves] / spread_S[moves] for i in (ids, held_ids))
    centre_F = x_MF.mean(0)
    weight_FS = ridge(x_MF - centre_F, y_MS)
    errors = [
        float(((_features(tokenizer, some) - centre_F) @ weight_FS - held_MS).square().mean(0).sqrt().mean())
        for some in (pictures, made)
    ]
    return {"original": errors[0], "reconstructed": errors[1], "ratio": errors[1] / errors[0]}


def ridge(x_MF: Tensor, y_MS: Tensor) -> Tensor:
    """Weights (F, S) of centred data; the penalty is chosen by the last fifth of the rows, and learnt without it."""
    cut = len(x_MF) * 4 // 5
    fit_MF, gram_FF, moment_FS = x_MF[:cut], x_MF[:cut].T @ x_MF[:cut], x_MF[:cut].T @ y_MS[:cut]
    scale, eye_FF = float(gram_FF.diagonal().mean()), torch.eye(fit_MF.shape[1])
    best, chosen_FS = float("inf"), torch.zeros_like(moment_FS)
    for penalty in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        weight_FS = torch.linalg.solve(gram_FF + penalty * scale * eye_FF, moment_FS)
        error = float((x_MF[cut:] @ weight_FS - y_MS[cut:]).square().mean())
        if error < best:
            best, chosen_FS = error, weight_FS
    return chosen_FS


def _features(tokenizer: ImageTokenizer, pictures: dict[str, Tensor]) -> Tensor:
    """float32 (M, F): how each camera's picture differs from its background, at half the size."""
    rows = []
    for camera, image_MHWC in pictures.items():
        differs = (image_MHWC.float() - tokenizer.background(camera).cpu().float()) / 127.5
        rows.append(F.avg_pool2d(differs.permute(0, 3, 1, 2), 2).flatten(1))
    return torch.cat(rows, dim=1)


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
