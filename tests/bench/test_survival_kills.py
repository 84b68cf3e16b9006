# SPDX-License-Identifier: Apache-2.0
"""The judge of killed trainings sees what differs, and nothing else; the real kills are `vla bench survival`."""

import copy
import json

from vla.bench import survival_training as kills
from vla.bench.survival_episodes import episodes_of, whole_lines


def a_run(folder, losses, weights=b"weights"):
    last = folder / "checkpoints" / f"{kills.STEPS:07d}"
    last.mkdir(parents=True)
    for name in kills.FILES:
        (last / name).write_bytes(weights)
    text = "".join(json.dumps({"step": s, "loss": x, "elapsed_s": 7 * s}) + "\n" for s, x in losses)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_a_run_that_was_killed_and_resumed_is_compared_to_the_last_bit(tmp_path):
    straight = kills.facts(a_run(tmp_path / "a", [(1, 0.5), (2, 0.25), (3, 0.125)]))
    # Killed after step 2, resumed from step 1: step 2 is told twice, at another time, and its line is cut once.
    again = a_run(tmp_path / "b", [(1, 0.5), (2, 0.25), (2, 0.25), (3, 0.125)])
    (again / "metrics.jsonl").write_text((again / "metrics.jsonl").read_text() + '{"step": 4, "lo')
    assert kills.differences(kills.facts(again), straight) == []
    assert kills.last_logged(again) == 3
    wrong = a_run(tmp_path / "c", [(1, 0.5), (2, 0.25), (2, 0.2500001), (3, 0.125)])
    assert kills.differences(kills.facts(wrong), straight) == ["loss of step 2"]
    lacking = a_run(tmp_path / "d", [(1, 0.5), (3, 0.125)], weights=b"others")
    assert kills.differences(kills.facts(lacking), straight) == ["2: no loss", *kills.FILES]


def test_a_training_with_a_difference_does_not_count():
    good, bad = kills.Tally(5, 2, [3, 0]), kills.Tally(4, 1, [6], ["loss of step 2"])
    rows = {row.id: row for row in kills.rows([good, bad], 9)}
    assert rows["train_kills"].passes and rows["train_kills"].value == 9
    assert not rows["train_kills_bit_identical"].passes and "loss of step 2" in rows["train_kills_bit_identical"].note
    assert not rows["train_steps_lost_max"].passes and rows["train_kills_during_save"].value == 3
    assert all(row.passes is not False for row in kills.rows([good], 5))


def test_episodes_of_a_dataset_are_told_apart(tiny_dataset, tmp_path):
    found = episodes_of(tiny_dataset)
    assert len(found) >= 15 and len(set(found.values())) == len(found)
    assert episodes_of(tmp_path) == {} and found == copy.copy(episodes_of(tiny_dataset))
    (tmp_path / "lines").write_text("a\nb\ncut of")
    assert whole_lines(tmp_path / "lines") == {"a", "b"} and whole_lines(tmp_path / "none") == set()
