# SPDX-License-Identifier: Apache-2.0
"""The instruments of `vla bench lattice`, each on a case whose answer is known, and one tiny cell from end to end."""

import json
import math
from dataclasses import replace

import pytest
import torch

from vla import randomness
from vla.bench import fork
from vla.bench.ladder import NFES, VARIANTS, Cell, World, record, run_cell
from vla.bench.lattice_rows import steps_to, success_rows, world_rows
from vla.bench.revision import auroc
from vla.diffusion.likelihood import chain_bits, sampler_bits
from vla.model import LatticeModel, ModelConfig
from vla.recipes import get


def uniform_model():
    torch.manual_seed(0)
    model = LatticeModel(ModelConfig(cameras=(), width=32, vocabulary=4, text_length=2, noise_indices=4)).eval()
    model.head.out.data.zero_()
    return model


@pytest.mark.parametrize("single_mask", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_a_uniform_network_needs_eight_bits_a_token_however_it_is_sampled(single_mask, noise):
    model = uniform_model()
    digits = torch.randint(0, 16, (3, 8, 4, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prefix = model.encode({}, torch.zeros(3, 4), torch.ones(3, 2, dtype=torch.long))
    keys = randomness.fold(0, torch.arange(3))
    for evaluations in (1, 2, 4):
        bits = sampler_bits(model, prefix, digits, keys, evaluations, single_mask, noise)
        assert torch.allclose(bits, torch.full((3,), 8.0 * 32, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(chain_bits(model, prefix, digits, keys), bits, atol=1e-3)


def test_the_bimodal_task_is_exactly_bimodal():
    keys = randomness.fold(0, torch.arange(4000))
    _, digits, width = fork.data(keys)
    index = digits[..., 0] * 16 + digits[..., 1]
    left, right = fork.bins(fork.curve(width, -1)), fork.bins(fork.curve(width, 1))
    is_left, is_right = (index == left).all((1, 2)), (index == right).all((1, 2))
    assert bool((is_left ^ is_right).all()) and abs(is_left.double().mean() - 0.5) < 0.03
    assert bool(((left - right)[..., 1].abs().amax(1) > 3 * 16).all())  # a mean of the two follows neither


def test_auroc_and_steps_to_a_target():
    assert auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0])) == 1.0
    assert auroc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5
    assert steps_to([[10, 5.0], [20, 3.0], [30, 1.0]], 2.0) == 25
    assert steps_to([[10, 5.0]], 6.0) == 10 and steps_to([[10, 5.0]], 1.0) == math.inf


def cells(rate, seeds=2, n=50):
    """Cells whose first `rate[nfe]` of n episodes succeed."""
    return [{"seed": s, "successes": {str(k): {f"reach:{i}": i < r for i in range(n)} for k, r in rate.items()}}
            for s in range(seeds)]  # fmt: skip


def test_success_must_not_fall_with_evaluations_and_must_beat_one_mask():
    single = cells(dict.fromkeys(NFES, 30))
    good = {r.id: r.passes for r in success_rows(cells({1: 29, 2: 30, 4: 30, 8: 31}), single)}
    assert good["success_nfe_2"] and good["success_nfe_4"] and good["success_nfe_8"]
    bad = {r.id: r for r in success_rows(cells({1: 40, 2: 29, 4: 28, 8: 30}), single)}
    assert not bad["success_nfe_2"].passes and not bad["success_nfe_4"].passes and bad["success_nfe_8"].passes
    assert bad["success_nfe_2"].n == 100 and bad["single_mask_nfe_8"].passes is None


def test_every_variant_is_a_recipe():
    single = get("tabletop_state", VARIANTS["single_mask"])
    assert single.programs.single_mask and single.sampling.single_mask and single.noise_indices == 1
    assert get("tabletop_state", VARIANTS["lattice"]) == get("tabletop_state")


def test_a_tiny_cell_from_end_to_end(tmp_path):
    world = World("state", "tabletop_state", "demo", "tabletop_state", tmp_path / "data", 20, 8, 5, ("lattice",))
    record(world)
    found = {}
    for variant in ("single_mask", "lattice"):
        cell = Cell(world, variant, 0, tmp_path)
        run_cell(cell)
        found[variant] = [json.loads(cell.file.read_text())]
    rows = {row.id: row for row in world_rows("x_", found)}
    assert {"x_success_nfe_8", "x_factorisation_gap_ratio_t2", "x_grad_variance_ratio", "x_repair_rate"} <= set(rows)
    assert rows["x_loss_coverage"].value == 1 and rows["x_success_nfe_1"].n == 5
    assert cell.measured()["commit"] and replace(cell, world=replace(world, steps=9)).measured() is None
    assert [step for step, _ in found["lattice"][0]["curve"]] == list(range(1, 9))
