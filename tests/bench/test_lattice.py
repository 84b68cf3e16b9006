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
from vla.bench.lattice_rows import fork_rows, steps_to, success_rows, world_rows
from vla.bench.likelihood import chain_bits, sampler_bits
from vla.canvas import Segment, unmasked
from vla.diffusion.likelihood import log_likelihood
from vla.model import LatticeModel, ModelConfig, Observed
from vla.recipes import get


def network(uniform=True):
    """A network of no camera, and what it has read of three states."""
    torch.manual_seed(0)
    model = LatticeModel(ModelConfig(cameras=(), width=32, text_length=2, noise_indices=4)).eval()
    if uniform:
        model.head_of(Segment.ACTION).out.data.zero_()
    else:
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    with torch.no_grad():
        return model, model.read(None, {Segment.OBSERVATION: Observed({}, torch.randn(3, 1, 4))})


DIGITS = torch.randint(0, 16, (3, 8, 4, 2), generator=torch.Generator().manual_seed(0))
KEYS = randomness.fold(0, torch.arange(3))


@pytest.mark.parametrize("single_mask", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_a_uniform_network_needs_eight_bits_a_token_however_it_is_sampled(single_mask, noise):
    model, context = network()
    for steps in (1, 2, 4):
        bits = sampler_bits(model, context, DIGITS, KEYS, steps, single_mask, noise)
        assert torch.allclose(bits, torch.full((3,), 8.0 * 32, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(chain_bits(model, context, DIGITS, KEYS), bits, atol=1e-3)


def test_bits_are_those_of_the_library_and_of_the_mixture():
    model, context = network(uniform=False)
    two = sampler_bits(model, context, DIGITS, KEYS, 2, single_mask=False, noise=False)
    assert torch.allclose(two, -log_likelihood(model, context, DIGITS) / math.log(2))
    state, total = unmasked(DIGITS, torch.zeros(3, 8, 4, dtype=torch.long)), torch.zeros(3, dtype=torch.float64)
    for z in (1, 2, 3):  # one step, by hand: the mean of the probabilities under each index
        hidden = model.decode(context, {Segment.ACTION: state.with_noise(torch.full_like(DIGITS[..., 0], z))})
        logits = model.head_of(Segment.ACTION)(hidden[Segment.ACTION], DIGITS)
        picked = [x.log_softmax(-1).gather(-1, DIGITS[..., d : d + 1]) for d, x in enumerate(logits)]
        total += sum(x.double().flatten(1).sum(1) for x in picked).detach().exp() / 3
    one = sampler_bits(model, context, DIGITS, KEYS, 1, single_mask=False, noise=True)
    assert torch.allclose(one, -total.log2(), rtol=1e-5)


def test_the_bimodal_task_is_exactly_bimodal():
    keys = randomness.fold(0, torch.arange(4000))
    _, digits, width = fork.data(keys)
    index = digits[..., 0] * 16 + digits[..., 1]
    left, right = fork.bins(fork.curve(width, -1)), fork.bins(fork.curve(width, 1))
    is_left, is_right = (index == left).all((1, 2)), (index == right).all((1, 2))
    assert bool((is_left ^ is_right).all()) and abs(is_left.double().mean() - 0.5) < 0.03
    assert bool(((left - right)[..., 1].abs().amax(1) > 3 * 16).all())  # a mean of the two follows neither


def test_steps_to_a_target():
    assert steps_to([[10, 5.0], [20, 3.0], [30, 1.0]], 2.0) == 25
    assert steps_to([[10, 5.0]], 6.0) == 10 and steps_to([[10, 5.0]], 1.0) == math.inf


def cells(rate, seeds=2, n=50):
    """Cells whose first `rate[nfe]` of n episodes succeed."""
    return [{"seed": s, "successes": {str(k): {f"reach:{i}": i < r for i in range(n)} for k, r in rate.items()}}
            for s in range(seeds)]  # fmt: skip


def test_more_steps_must_not_be_worse_and_two_must_not_be_worse_than_one_mask():
    single = cells(dict.fromkeys(NFES, 900), n=1000)
    good = {r.id: r for r in success_rows(cells({1: 900, 2: 905, 4: 910, 8: 908}, n=1000), single)}
    assert good["success_nfe_1"].passes is None and good["single_mask_nfe_8"].passes is None
    assert good["success_nfe_2"].passes and good["success_nfe_4"].passes and good["success_nfe_8"].passes
    assert "lower end >= -2 points" in good["success_nfe_2"].goal and good["success_nfe_2"].n == 2000
    bad = {r.id: r for r in success_rows(cells({1: 900, 2: 870, 4: 800, 8: 801}, n=1000), single)}
    assert not bad["success_nfe_2"].passes and not bad["success_nfe_4"].passes and bad["success_nfe_8"].passes
    few = {r.id: r for r in success_rows(cells(dict.fromkeys(NFES, 30)), cells(dict.fromkeys(NFES, 30)))}
    assert few["success_nfe_2"].passes  # they agree everywhere
    few = {r.id: r for r in success_rows(cells({1: 30, 2: 29, 4: 29, 8: 29}), cells(dict.fromkeys(NFES, 30)))}
    assert not few["success_nfe_2"].passes  # nobody knows


def test_the_bimodal_rows_show_the_index_apart_from_the_lattice():
    joint = {"lattice": 0.95, "lattice_no_index": 0.1, "single_mask": 0.2, "single_mask_index": 0.9}
    found = {"joint": 0.0, "coverage": 0.5}
    forks = [{"name": n, "nfe1_t0": found | {"joint": x}, "nfe1_t1": found} for n, x in joint.items()]
    rows = {row.id: row for row in fork_rows(forks)}
    assert rows["bimodal_joint_1nfe"].passes and rows["bimodal_joint_1nfe_single_mask_index"].value == 0.9
    assert rows["bimodal_joint_1nfe_no_index"].value == 0.1 and set(joint) == set(fork.VARIANTS)


def test_every_variant_is_a_recipe():
    single = get("tabletop_state", VARIANTS["single_mask"])
    assert single.corruption.single_mask and single.sampling.single_mask and single.noise_indices == 1
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
    assert {
        "x_success_nfe_8",
        "x_factorisation_gap_ratio_t2",
        "x_grad_variance_ratio",
        "x_steps_to_target_ratio",
    } <= set(rows)
    assert rows["x_loss_coverage"].value == 1 and rows["x_success_nfe_1"].n == 5
    assert cell.measured()["commit"] and replace(cell, world=replace(world, steps=9)).measured() is None
    assert [step for step, _ in found["lattice"][0]["curve"]] == list(range(1, 9))
