# SPDX-License-Identifier: Apache-2.0
"""The same code from one to five hundred million parameters: nothing grows with the number of tokens."""

import dataclasses

import pytest
import torch

from vla import recipes
from vla.model import LatticeModel
from vla.recipes import Recipe
from vla.train.memory import dry_run
from vla.train.setup import build, network

from ..conftest import tiny_config


def parts(recipe: Recipe, tokenizers, cameras=("front",)) -> dict[str, int]:
    with torch.device("meta"):
        return LatticeModel(network(recipe, tokenizers, cameras)).parameters_by_part()


@pytest.fixture(scope="module")
def session(tiny_dataset, tmp_path_factory):
    recipe = dataclasses.replace(recipes.get("base"), compile=False)
    return build(tiny_config(tiny_dataset, tmp_path_factory.mktemp("scale") / "run"), recipe, torch.device("cpu"))


@pytest.mark.slow
def test_base_takes_a_step_and_says_what_fits(session):
    lines: list[str] = []
    before = {name: p.clone() for name, p in session.model.named_parameters()}
    found = dry_run(session, lines.append)
    assert 80e6 < found["parameters"] < 160e6
    assert sum(found["parts"].values()) == found["parameters"] == found["trainable"]
    assert 0 < found["fits"][24] < found["fits"][80] < found["fits"][141]
    assert found["fixed_bytes"] == 20 * found["parameters"] and found["sample_bytes"] > 1e6
    assert any("24 GB" in line for line in lines)
    assert all(torch.equal(p, before[name]) for name, p in session.model.named_parameters()), "a dry run trains nothing"
    loss = session.losses(session.batches.batch(0), 0, None, (0, session.recipe.batch_size // 2))["loss"]
    loss.backward()
    session.optimiser.step()
    changed = sum(not torch.equal(p, before[name]) for name, p in session.model.named_parameters())
    assert torch.isfinite(loss) and changed > 100


@pytest.mark.slow
def test_large_has_half_a_billion_parameters(session):
    found = parts(recipes.get("large"), session.tokenizers)
    assert 0.4e9 < sum(found.values()) < 0.65e9, found


@pytest.mark.slow
def test_no_part_grows_with_the_number_of_tokens(session):
    recipe = recipes.get("base")
    few = parts(recipe, session.tokenizers)
    longer = dataclasses.replace(recipe, horizon=100, n_obs_steps=4)
    assert parts(longer, session.tokenizers) == few
    # Pixels by patches of their own size: sixteen times as many tokens for the transformer.
    finer = dataclasses.replace(recipe, vision="timm:vit_small_patch16_224", image_size=448)
    grown = {name: count for name, count in parts(finer, session.tokenizers).items() if count != few[name]}
    assert set(grown) <= {"vision"}, "timm's own table of places is all that may grow"
    assert parts(recipe, session.tokenizers, ("front", "left", "right")) == few, "cameras share one vision"
