# SPDX-License-Identifier: Apache-2.0
"""A student begins as its teacher, learns at the states that it passes through, and its run goes on after a stop."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import KEYS, actions_only, every_segment, read_all, shaken
from vla.canvas import Provenance, Segment, all_masked, unmasked
from vla.diffusion import Sampling, sample
from vla.diffusion.distillation import passed
from vla.policy import Observation, Policy
from vla.train.distill import DistillConfig, distill
from vla.train.student import SHARED, student_of

ACTION = Segment.ACTION


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 99))
def test_states_are_those_of_the_sampler_and_all_that_is_open_is_asked(rows, steps, depth, seed):
    draw = torch.Generator().manual_seed(seed)
    digits = torch.randint(0, 16, (rows, 4, 2, depth), generator=draw)
    known = depth * torch.randint(0, 2, (rows, 4, 2), generator=draw)
    corrupted = passed(digits, unmasked(digits, known), steps)
    state = corrupted.state
    assert torch.equal(corrupted.digits_BNSD, digits.repeat_interleave(steps, 0))
    for t in range(steps):
        level = torch.where(known > 0, depth, min(t, depth - 1))
        assert torch.equal(state.known_BNS[t::steps], level)
        committed = state.provenance_BNS[t::steps] == int(Provenance.COMMITTED)
        assert torch.equal(committed, known > 0)
    assert torch.equal(corrupted.asked_BNSD, ~state.visible_BNSD())
    with pytest.raises(ValueError, match="1 or 2 denoising steps, got 3"):
        passed(digits, unmasked(digits, known), 3)


def decided(model, context):
    return sample(model, context, KEYS[:3], [ACTION], Sampling(2)).segments[ACTION]


@torch.no_grad()
def test_a_student_begins_as_its_teacher():
    """Under the plain mask they decide alike; the other masks are near it, and are not one."""
    teacher = shaken(actions_only(), 0.1)
    student = student_of(teacher, 8).eval()
    assert student.config.noise_indices == 8
    contexts = [read_all(m) for m in (teacher, student)]
    plain = [decided(m, context) for m, context in zip((teacher, student), contexts, strict=True)]
    assert torch.equal(plain[0].state.digits_BNSD, plain[1].state.digits_BNSD)
    assert torch.equal(plain[0].confidence_BNS, plain[1].confidence_BNS)
    nothing = all_masked((3, 8, 4), 2)
    seen = [
        student.decode(contexts[1], {ACTION: nothing.with_noise(torch.full((3, 8, 4), z))})[ACTION] for z in range(3)
    ]
    assert not torch.allclose(seen[0], seen[1], atol=1e-3) and not torch.allclose(seen[1], seen[2], atol=1e-3)
    known = {ACTION: unmasked(torch.ones(3, 8, 4, 2, dtype=torch.long))}
    assert torch.equal(teacher.decode(contexts[0], known)[ACTION], student.decode(contexts[1], known)[ACTION])
    assert student_of(shaken(actions_only(noise_indices=4)), 8).config.noise_indices == 4


@torch.no_grad()
def test_of_a_unified_teacher_only_the_actions_are_taught():
    """They begin as they are decided alone, and nothing else can be asked of the student, or given to it."""
    teacher = shaken(every_segment())
    student = student_of(teacher, 4).eval()
    assert set(student.config.written) == {Segment.INSTRUCTION, ACTION}
    assert student.config.read == (Segment.INSTRUCTION, Segment.OBSERVATION)
    found = [decided(m, read_all(m, only=student.config.read)) for m in (teacher, student)]
    assert torch.equal(found[0].state.digits_BNSD, found[1].state.digits_BNSD)
    looks = {name.split(".")[0] for name, p in student.named_parameters() if not p.requires_grad}
    assert looks == set(SHARED)


def run(teacher, dataset, out, **changes):
    made = {"steps": 4, "batch_size": 8, "threads": 1, "save_interval": 2, "holdout": 0.2} | changes
    return distill(DistillConfig(str(teacher), str(dataset), out, **made))


def test_distilling_goes_on_after_a_stop_as_if_there_had_been_none(tiny_run, tiny_dataset, tmp_path):
    teacher = tiny_run / "checkpoints" / "last"
    result = run(teacher, tiny_dataset, tmp_path / "whole")
    assert result["steps"] == 4 and np.isfinite(result["loss"]) and np.isfinite(result["val_loss"])
    checkpoints = tmp_path / "whole" / "checkpoints"
    policy, before = Policy.load(checkpoints / "last"), Policy.load(teacher)
    assert policy.sampling == Sampling(1, noise=True) and policy.model.config.noise_indices == 16
    for name, parameter in policy.model.named_parameters():
        if name.split(".")[0] in SHARED:
            assert torch.equal(parameter, before.model.get_parameter(name))
    assert not torch.equal(policy.model.head_of(ACTION).out, before.model.head_of(ACTION).out)
    seen = Observation({"front": np.full((32, 32, 3), 90, np.uint8)}, np.zeros(4, np.float32), "reach the red block")
    chunk = policy.decide([seen], [(1, 2)], [np.zeros((2, 4), np.float32)])
    assert (chunk.actions_BHA[0, :2] == 0).all() and np.isfinite(chunk.actions_BHA).all()

    stopped = tmp_path / "stopped" / "checkpoints"
    stopped.mkdir(parents=True)
    shutil.copytree(checkpoints / "0000002", stopped / "0000002")
    run(teacher, tiny_dataset, tmp_path / "stopped", resume=True)
    for file in ("model.safetensors", "training.safetensors"):
        assert (stopped / "last" / file).read_bytes() == (checkpoints / "last" / file).read_bytes()
    with pytest.raises(ValueError, match="expected 1 or 2 denoising steps"):
        run(teacher, tiny_dataset, tmp_path / "wrong", num_inference_steps=3)
    assert json.loads((checkpoints / "last" / "config.json").read_text())["sampling"]["num_inference_steps"] == 1


def test_a_teacher_that_knows_waypoints_plans_and_pictures_can_be_distilled(unified, played, tmp_path):
    teacher = Policy.load(unified / "checkpoints" / "last")
    assert teacher.tokenizers.waypoints is not None and teacher.tokenizers.image is not None
    result = run(unified / "checkpoints" / "last", played, tmp_path / "run", num_inference_steps=2, steps=2)
    student = Policy.load(result["checkpoint"])
    assert student.trained == ("policy", "continuation") and student.model.config.noise_indices == 4
    assert student.tokenizers.waypoints is None and student.tokenizers.image is None
    seen = replace(student.blank(), instruction="reach the red block")
    assert np.isfinite(student.act([seen], [(0, 0)])).all()
    with pytest.raises(ValueError, match="was not trained for waypoints, waypoint_policy"):
        Policy.load(result["checkpoint"], decoding="waypoints")
