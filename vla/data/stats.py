# SPDX-License-Identifier: Apache-2.0
"""Statistics of features, in the shape of LeRobot's stats.json, over frames and not over episodes.

LeRobot 0.6.1 stores the mean of per-episode quantiles, which cut off up to 41 % of an action's range when it
was measured. A quantile here is one of all the frames that it claims to describe.
"""

import numpy as np

QUANTILES: dict[str, float] = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, np.ndarray]
"""min, max, mean, std, count and the quantiles."""


def vector_stats(values_ND: np.ndarray) -> Stats:
    """Statistics of a vector feature. `values_ND`: (N, D), N >= 1. Every entry float64 (D,), but count int64
    (1,)."""
    values = values_ND.astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    stats["count"] = np.array([len(values)])
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return stats | dict(zip(QUANTILES, quantiles, strict=True))


def image_histogram(images_NHWC: np.ndarray) -> np.ndarray:
    """Count each value in each channel. `images_NHWC`: uint8 (N, H, W, C). Returns int64 (C, 256)."""
    channels = images_NHWC.shape[-1]
    flat = images_NHWC.reshape(-1, channels)
    return np.stack([np.bincount(flat[:, c], minlength=256) for c in range(channels)])


def image_stats(histogram_CV: np.ndarray, count: int) -> Stats:
    """Statistics of images from their histogram, exact. `count`: of images. Entries float64 (C, 1, 1) in [0,
    1]."""
    values = np.arange(256) / 255.0
    total = histogram_CV.sum(1)
    cumulative = histogram_CV.cumsum(1)
    mean = histogram_CV @ values / total
    present = histogram_CV > 0
    stats = {
        "min": present.argmax(1) / 255.0,
        "max": (255 - present[:, ::-1].argmax(1)) / 255.0,
        "mean": mean,
        "std": np.sqrt(np.maximum(histogram_CV @ values**2 / total - mean**2, 0.0)),
    }
    for name, q in QUANTILES.items():
        rank = np.floor(q * (total - 1)).astype(np.int64)
        stats[name] = (cumulative > rank[:, None]).argmax(1) / 255.0
    return {name: value[:, None, None] for name, value in stats.items()} | {"count": np.array([count])}
