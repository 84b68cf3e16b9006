# SPDX-License-Identifier: Apache-2.0
"""The pure parts of benchmarks/eval_throughput.py: reading what both commands wrote, and the rows made of it."""

import json
import os
import sys

import pytest

from benchmarks.eval_throughput import Run, command, make_rows, read_ours, read_theirs

LOG = "Making policy.\nRunning rollout with at most 500 steps:   0%|          | 0/500 [00:00<?, ?it/s]\rmore"


def run(rate, steps=1000, pixels=96, successes=0):
    """A run of so many steps a second, whose rollouts are twice, and whose whole command is half as fast."""
    seconds = steps / rate
    return Run(steps, 2, successes, seconds, seconds / 2, 2 * seconds, pixels)


def by_id(rows):
    return {row.id: row for row in rows}


def test_ours_is_timed_from_the_file_before_the_workers_to_the_file_after_the_videos(tmp_path):
    summary = {"n": 4, "success": 0.25, "steps_per_s": 65.0, "manifest": {"image_size": 96}}
    lines = [json.dumps({"length": length}) for length in (400, 400, 100, 400)]
    (tmp_path / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for name, content, time_s in (("config.json", {}, 1000.0), ("summary.json", summary, 1025.5)):
        (tmp_path / name).write_text(json.dumps(content))
        os.utime(tmp_path / name, (time_s, time_s))
    assert read_ours(tmp_path, 30.0) == Run(1300, 4, 1, 25.5, 20.0, 30.0, 96)


def test_theirs_counts_every_episode_as_the_limit_that_the_output_names():
    info = {"overall": {"n_episodes": 4, "pc_success": 25.0, "eval_s": 400.0}}
    assert read_theirs(info, LOG, 420.0, 480) == Run(2000, 4, 1, 400.0, 400.0, 420.0, 480)
    with pytest.raises(ValueError, match="must have changed"):
        read_theirs(info, "Making policy.", 420.0, 480)


def test_lerobot_counts_with_its_best_batch_size_on_each_clock():
    rows = by_id(make_rows([run(100), run(120)], {1: [run(4), run(4)], 2: [run(5), run(3.5)]}, {}))
    assert rows["eval_throughput_ours"].value == pytest.approx(110)
    assert rows["eval_throughput_lerobot"].value == pytest.approx(4.25)  # the median of batch size 2
    assert "batch_size 2, the best of [1, 2]" in rows["eval_throughput_lerobot"].note
    assert rows["eval_throughput_ratio"].value == pytest.approx((100 / 5 + 120 / 3.5) / 2)
    assert rows["eval_throughput_ours_whole_command"].value == pytest.approx(55)
    assert rows["eval_throughput_ratio"].n == 4000 and "990 episodes of 400 steps" in rows["eval_throughput_ours"].note
    assert not any(row.endswith("no_videos") for row in rows)


def test_nothing_is_held_to_a_goal_because_the_two_do_not_do_the_same():
    rows = by_id(make_rows([run(100)], {1: [run(5, pixels=480)]}, {1: [run(10, pixels=0, successes=1)]}))
    assert not [row.id for row in rows.values() if row.goal or row.passes is not None]
    assert "96 and 480 px" in rows["eval_throughput_ratio"].note
    assert rows["eval_throughput_ratio_no_videos"].value == pytest.approx(10)
    assert "1 succeeded" in rows["eval_throughput_lerobot_no_videos"].note
    assert "the same px" in rows["eval_throughput_lerobot_no_videos"].note


def test_a_command_that_fails_says_why():
    program = "import sys; print(sys.argv[1:]); sys.exit(len(sys.argv) - 2)"
    seconds, output = command([sys.executable, "-c", program], {"a.b": 1})
    assert seconds > 0 and output.strip() == "['--a.b=1']"
    with pytest.raises(RuntimeError, match=r"exit code 1:\n.*--c=d"):
        command([sys.executable, "-c", program], {"a.b": 1, "c": "d"})
