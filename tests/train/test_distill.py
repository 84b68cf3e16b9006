# SPDX-License-Identifier: Apache-2.0
"""A student begins as its teacher, learns at the states that it passes through, and its run goes on after a stop."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.canvas import Provenance, hidden, revealed
from vla.diffusion import Sampling, sample
from vla.diffusion.distillation import passed
from vla.model import LatticeModel, ModelConfig
from vla.policy import Observation, Policy
from vla.train.distill import DistillConfig, distill
from vla.train.student import SHARED, student_of


def network(**changes):
    torch.manual_seed(0)
    model = LatticeModel(ModelConfig(cameras=(), vocabulary=50, text_length=6, width=32, layers=2, **changes)).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1
    return model


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 99))
def test_states_are_those_of_the_sampler_and_all_that_is_open_is_asked(rows, evaluations, depth, seed):
    draw = torch.Generator().manual_seed(seed)
    digits = torch.randint(0, 16, (rows, 4, 2, depth), generator=draw)
    known = depth * torch.randint(0, 2, (rows, 4, 2), generator=draw)
    corrupted = passed(digits, revealed(digits, known), evaluations)
    state = corrupted.state
    assert torch.equal(corrupted.digits_BNSD, digits.repeat_interleave(evaluations, 0))
    for t in range(evaluations):
        rung = torch.where(known > 0, depth, min(t, depth - 1))
        assert torch.equal(state.known_BNS[t::evaluations], rung)
        committed = state.provenance_BNS[t::evaluations] == int(Provenance.COMMITTED)
        assert torch.equal(committed, known > 0)
    assert torch.equal(corrupted.asked_BNSD, ~state.visible_BNSD()) and not corrupted.judged_BNSD.any()
    with pytest.raises(ValueError, match="1 or 2 evaluations"):
        passed(digits, revealed(digits, known), 3)


def test_a_student_begins_as_its_teacher():
    """Under the plain mask they decide alike; the other masks are near it, and are not one."""
    teacher = network(quality=True, ahead=4)
    student = student_of(teacher, 8).eval()
    assert student.config.noise_indices == 8 and student.quality is None and student.ahead is None
    state, words, keys = torch.rand(5, 4), torch.randint(1, 50, (5, 6)), torch.arange(5)
    with torch.no_grad():
        both = [m.encode({}, state, words) for m in (teacher, student)]
        plain = [sample(m, prefix, keys, Sampling(2)) for m, prefix in zip((teacher, student), both, strict=True)]
        top = hidden((5, 8, 4), 2)
        seen = [student.decode(both[1], top.with_noise(torch.full((5, 8, 4), z))) for z in (0, 1, 2)]
        known = revealed(torch.ones(5, 8, 4, 2, dtype=torch.long))
        assert torch.equal(teacher.decode(both[0], known), student.decode(both[1], known))
    assert torch.equal(plain[0].state.digits_BNSD, plain[1].state.digits_BNSD)
    assert torch.equal(plain[0].confidence_BNS, plain[1].confidence_BNS)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3) and not torch.allclose(seen[1], seen[2], atol=1e-3)
    assert student_of(network(noise_indices=4), 8).config.noise_indices == 4


def test_of_a_unified_teacher_only_the_actions_are_taught():
    """They begin as they are decided alone, and nothing else can be asked of the student."""
    unified = {"word_radices": (7, 8), "plan_length": 5, "code_radices": (4, 3), "codes": 4}
    torch.manual_seed(0)
    teacher = LatticeModel(
        ModelConfig(cameras=("front",), image_size=16, vocabulary=50, text_length=6, width=32, layers=2, **unified)
    ).eval()
    student = student_of(teacher, 4).eval()
    assert teacher.config.unified and not student.config.unified
    images = {"front": torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)}
    state, words, keys = torch.rand(3, 4), torch.randint(1, 50, (3, 6)), torch.arange(3)
    with torch.no_grad():
        found = [sample(m, m.encode(images, state, words), keys, Sampling(2)) for m in (teacher, student)]
    assert torch.equal(found[0].state.digits_BNSD, found[1].state.digits_BNSD)


def test_distilling_goes_on_after_a_stop_as_if_there_had_been_none(tiny_run, tiny_dataset, tmp_path):
    teacher = tiny_run / "checkpoints" / "last"

    def run(name, **changes):
        made = {"steps": 6, "batch_size": 8, "threads": 1, "save_interval": 3, "holdout": 0.2} | changes
        return distill(DistillConfig(str(teacher), str(tiny_dataset), tmp_path / name, **made))

    result = run("whole")
    assert result["steps"] == 6 and np.isfinite(result["loss"]) and np.isfinite(result["val_loss"])
    checkpoints = tmp_path / "whole" / "checkpoints"
    policy, before = Policy.load(checkpoints / "last"), Policy.load(teacher)
    assert policy.sampling == Sampling(1, noise=True) and policy.model.config.noise_indices == 16
    for name, parameter in policy.model.named_parameters():
        if name.split(".")[0] in SHARED:
            assert torch.equal(parameter, before.model.get_parameter(name))
    assert not torch.equal(policy.model.head.out, before.model.head.out)
    seen = Observation({"front": np.full((32, 32, 3), 90, np.uint8)}, np.zeros(4, np.float32), "reach the red block")
    chunk = policy.decide([seen], [(1, 2)], [np.zeros((2, 4), np.float32)])
    assert (chunk.actions_BHA[0, :2] == 0).all() and np.isfinite(chunk.actions_BHA).all()

    run("stopped")
    stopped = tmp_path / "stopped" / "checkpoints"
    for folder in stopped.glob("*6"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (tmp_path / "stopped" / "train.json").unlink()
    run("stopped", resume=True)
    for file in ("model.safetensors", "training.safetensors"):
        assert (stopped / "last" / file).read_bytes() == (checkpoints / "last" / file).read_bytes()
    with pytest.raises(ValueError, match="expected 1 or 2 evaluations"):
        run("wrong", evaluations=3)
    assert json.loads((checkpoints / "last" / "config.json").read_text())["sampling"]["evaluations"] == 1
