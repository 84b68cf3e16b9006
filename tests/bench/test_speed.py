# SPDX-License-Identifier: Apache-2.0
"""The slower ways that `vla bench speed` compares with compute what they should, or their times would say nothing."""

import numpy as np
import pytest
import torch

from vla.bench import speed_gpu
from vla.bench.speed import SpeedConfig, cache
from vla.bench.speed_floor import Machine, count, floor
from vla.bench.speed_networks import SIZES, Size, given, in_turns, make, seen
from vla.bench.speed_paths import Autoregressive, Uncached, as_kind
from vla.canvas import Segment
from vla.diffusion import Sampling, sample


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_without_the_cache_the_answer_is_the_same(steps):
    policy = make(SIZES["nano"])
    segments, keys, action = given(policy, 2), torch.tensor([1, 2]), Segment.ACTION
    again = as_kind(policy.model, Uncached)
    with torch.inference_mode():
        cached, uncached = (
            sample(model, read, keys, [action], Sampling(steps)).segments[action]
            for model, read in ((policy.model, policy.model.read(None, segments)), (again, again.begin(segments)))
        )
    assert torch.equal(cached.state.digits_BNSD, uncached.state.digits_BNSD)
    assert torch.allclose(cached.confidence_BNS, uncached.confidence_BNS, atol=1e-5)


def test_the_cache_is_measured_with_a_long_instruction_and_a_real_one(monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", Size(32, 1, 2))
    rows = {row.id: row for row in (*cache("tiny", 1), *cache("tiny", 1, 64))}
    assert rows["cache_max_logit_diff"].passes and rows["cache_max_logit_diff_long"].passes
    assert rows["cache_speedup"].goal == "" and "places of prefix" in rows["cache_speedup_long"].note


def test_token_after_token_reads_what_it_has_written():
    policy = make(SIZES["nano"], arrangement="per_dim")
    model = as_kind(policy.model, Autoregressive)
    with torch.inference_mode():
        context = model.read(None, given(policy, 2))
        digits = model.write(context).digits_BND
        assert torch.equal(model.write(context.pick(torch.tensor([1]))).digits_BND, digits[1:])
        model.embedding_of(Segment.ACTION).table.mul_(3.0)  # of tokens: the first reads none but "nothing"
        other = model.write(context).digits_BND
    layout = model.config.layout
    assert digits.shape == (2, layout.positions, layout.digits) and digits.max() < layout.base
    assert not torch.equal(other[:, 1:], digits[:, 1:])
    with pytest.raises(ValueError, match="'per_dim' for single tokens"):
        as_kind(make(SIZES["nano"]).model, Autoregressive)


def test_operations_and_bytes_are_counted_and_the_larger_one_is_the_floor():
    policy = make(SIZES["nano"])
    operations = count(policy, lambda: policy.act([seen(policy, 0)], [(0, 0)]))
    both = count(policy, lambda: policy.act([seen(policy, 0), seen(policy, 1)], [(0, 0), (0, 1)]))
    assert operations > 1e6 and both == pytest.approx(2 * operations, rel=0.03)  # places are the same for all
    by_operations = floor(policy, operations, Machine(1e9, 1e15))
    by_bytes = floor(policy, operations, Machine(1e18, 1e9))
    assert by_operations.ms == pytest.approx(operations / 1e6) and by_bytes.ms == pytest.approx(by_bytes.bytes / 1e6)
    assert 4e6 < by_bytes.bytes < 1e7  # about a million weights, some of them four times


def test_calls_take_turns():
    said = []
    taken = in_turns({"a": lambda n: said.append(("a", n)), "b": lambda n: said.append(("b", n))}, 3, warm=1)
    assert said == [(name, n) for n in (-1, 0, 1, 2) for name in "ab"]
    assert all(len(ms) == 3 and np.all(ms >= 0) for ms in taken.values())
    said.clear()
    in_turns({"a": lambda n: said.append(("a", n)), "b": lambda n: said.append(("b", n))}, 3, warm=0, block=2)
    assert said == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("b", 2)]


def test_a_gpu_is_measured_as_a_cpu_can_be():
    cpu = torch.device("cpu")
    p50, p99, ratio = speed_gpu.decisions(make(SIZES["nano"]), cpu, 5, backend="eager")
    assert 0 < p50.value <= p99.value and ratio.value > 1
    mfu = speed_gpu.training(make(SIZES["nano"]), cpu, 4, 2)
    assert 0 < mfu.value < 1 and mfu.passes is (mfu.value >= 0.5)


def test_without_a_gpu_rows_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = speed_gpu.gpu_rows(SpeedConfig())
    assert len(rows) == 4 and all(
        row.value != row.value and row.passes is None and "no GPU" in row.note for row in rows
    )
