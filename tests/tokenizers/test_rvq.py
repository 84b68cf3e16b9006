# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest
import torch

from vla.tokenizers.action import windows
from vla.tokenizers.rvq import RvqTokenizer, kmeans


def episodes():
    """A dimension and a gripper that move together, 20 episodes of 20 steps."""
    rng, t = np.random.default_rng(0), np.arange(20) / 20
    rows = []
    for _ in range(20):
        x = rng.uniform(1, 3) * np.sin(6.28 * (t + rng.uniform()))
        rows.append(np.stack([x, np.where(t > rng.uniform(0.2, 0.8), 0.04, 0.0)], axis=1))
    end = np.arange(20, 401, 20)
    return np.concatenate(rows).astype(np.float32), end - 20, end, ["x", "gripper"]


@functools.cache
def fitted(digits=4):
    return RvqTokenizer.fit(*episodes(), 8, digits=digits)


def chunks():
    return torch.from_numpy(windows(*episodes()[:3], 8))


def test_kmeans_finds_what_is_there_even_fewer_points_than_centres():
    truth = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    points = truth.repeat(40, 1) + 0.01 * torch.randn(120, 2, generator=torch.Generator().manual_seed(1))
    centres = kmeans(points, 3, torch.Generator().manual_seed(0))
    assert bool((torch.cdist(truth, centres).amin(1) < 0.05).all())
    assert bool(torch.isfinite(kmeans(truth, 8, torch.Generator().manual_seed(0))).all())


def test_levels_are_ordered_and_frozen():
    """More levels leave the first ones as they were; each reduces the error by a good part."""
    assert fitted(4).codebooks[:2] == fitted(2).codebooks
    digits = fitted().encode(chunks())
    errors = [(fitted().decode_prefix(digits, n) - chunks())[..., 0].square().mean().sqrt() for n in (1, 2, 3, 4)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] > 3 * errors[3]


def test_gripper_is_right_after_the_first_level():
    first = fitted().decode_prefix(fitted().encode(chunks()), 1)[..., 1]
    assert (first == chunks()[..., 1]).float().mean() > 0.98
    assert set(first.unique().tolist()) == {fitted().low[1], np.float32(0.04)}


def test_codes_are_not_numbers():
    digits = fitted().encode(chunks()[:5])
    assert torch.equal(fitted().decode(digits, torch.ones(5, 4, 1)), fitted().decode(digits))
    assert not fitted().time_aligned


def test_other_horizons_work_if_slices_divide_them():
    assert fitted().grid(12) == (6, 1) and fitted().chunk_steps(6) == 12
    assert fitted().decode(fitted().encode(torch.zeros(1, 12, 2))).shape == (1, 12, 2)
    for act in (lambda: fitted().encode(torch.zeros(1, 7, 2)), lambda: RvqTokenizer.fit(*episodes(), 7)):
        with pytest.raises(ValueError, match="multiple of 2 steps"):
            act()
