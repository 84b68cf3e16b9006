# SPDX-License-Identifier: Apache-2.0
"""The judge of killed trainings sees what differs, and nothing else; a few real kills, of what is as it should be and
of what has a defect. Hundreds of kills are `vla bench survival`."""

import copy
import importlib
import json
import multiprocessing
import random
import sys
import time

import pytest
from rich.console import Console

from vla.bench import survival_training as kills
from vla.bench.survival_episodes import (
    Tally,
    actions_of,
    episodes_of,
    kill_evaluations,
    kill_recordings,
    twice,
    whole_lines,
)
from vla.data.record import RecordConfig, record
from vla.eval.evaluate import EvalConfig, evaluate

PLANTED = """
import pathlib, sys
import vla.train.saving as saving
from vla import checkpoint
from vla.bench import survival_training as kills

kills.STEPS = 30

def as_it_is(*given):
    kills.training(*given)

def forgets_moments(*given):
    real = saving.load_training
    def load(folder, s, steps):
        got = real(folder, s, steps)
        for moments in s.optimiser.state.values():
            moments["exp_avg"].zero_()
        return got
    saving.load_training = load
    kills.training(*given)

def goes_on_from_the_oldest(*given):
    checkpoint.prune = lambda *_: None
    saving.newest_sound = lambda run: checkpoint.steps_in(run)[0]
    kills.training(*given)

def falls_once(data, run, resume):
    mark = pathlib.Path(run + ".fell")
    if resume and not mark.exists():
        mark.touch()
        sys.exit(3)
    kills.training(data, run, resume)
"""


class Told:
    """Draws of a chain: aimed at a file that a save of every life writes, of which each shows two or three."""

    def __init__(self, file):
        self.file = file

    def random(self):
        return 0.1

    def randrange(self, _):
        return self.file


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
    assert kills.steps_again(again) == [1] and kills.steps_again(tmp_path / "a") == []
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


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_trainings.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kills, "STEPS", 30)
    yield importlib.import_module("planted_trainings")
    del sys.modules["planted_trainings"]


@pytest.mark.slow
def test_killed_trainings_and_what_would_be_seen(planted, tiny_dataset, tmp_path, monkeypatch):
    """Real kills: of the training as it is, which passes, and of three with a defect each, which do not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(kills.PRELOAD)

    def chain(name, count=1, file=2):
        monkeypatch.setattr(kills, "A_CHAIN", count)
        monkeypatch.setattr(kills, "training", getattr(planted, name))
        return kills.chain(context, tiny_dataset, tmp_path / name, Told(file), 10.0, reference)

    monkeypatch.setattr(kills, "training", planted.as_it_is)
    kills.start(context, tiny_dataset, tmp_path / "reference", resume=False).join()
    reference = kills.facts(tmp_path / "reference")
    good = chain("as_it_is", 2)
    assert (good.kills, good.wrong) == (2, []) and good.during_save <= 2  # a save may end just before its kill
    assert all(lost > 0 for lost in good.lost) and max(good.lost, default=0) <= kills.SAVE
    assert all(row.passes is not False for row in kills.rows([good], 2))
    assert any("of step" in text for text in chain("forgets_moments").wrong)
    assert chain("falls_once", 2).wrong == ["a run ended by itself with 3"]
    older = chain("goes_on_from_the_oldest", file=6)  # two checkpoints are there
    assert older.wrong == [] and max(older.lost) > kills.SAVE


def test_what_a_killed_save_left_is_not_taken_for_a_save(tmp_path):
    """A child that never saves, in a folder where a killed one did, is not killed at once, nor counted as saving."""
    folder = tmp_path / "run" / "checkpoints" / ".writing-0000005-1"
    folder.mkdir(parents=True)
    child = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    child.start()
    began, left = time.perf_counter(), kills.temporaries(tmp_path / "run")
    assert left == {folder.name}
    assert kills.kill(child, tmp_path / "run", Told(2), 0.5, left) == (True, False)
    assert time.perf_counter() - began > 0.9


class Early(random.Random):
    """Draws of kills: at once, or as soon as one more episode is written."""

    def random(self):
        return 0.0


@pytest.mark.slow
def test_evaluations_that_are_run_again_are_seen(tmp_path, monkeypatch):
    """Real kills of an evaluation, as it is and with one that forgets what is done."""
    from vla.bench import survival_episodes as episodes

    program = (
        "import sys\nimport vla.eval.evaluate as e\nreal = e._prepare_folder\n"
        "if sys.argv.pop(1) == 'forgets':\n    e._prepare_folder = lambda *given: real(*given)[:0]\n"
        "from vla import cli\nsys.exit(cli.main(sys.argv[1:]))"
    )
    options = "--policy expert --episodes 12 --workers 1 --slots 1 --videos 0 --resume"

    def evaluation(how):
        return lambda out: [sys.executable, "-c", program, how, "eval", "--out", str(out), *options.split()]

    monkeypatch.setattr(episodes, "_evaluation", evaluation("as it is"))
    out = tmp_path / "eval-reference"
    evaluate(EvalConfig("expert", episodes=12, workers=1, slots=1, videos=0, out=out), console=Console(quiet=True))
    expected = actions_of(tmp_path / "eval-reference")
    assert len(expected) == 12
    tally = Tally()
    kill_evaluations(tmp_path, expected, 1.0, Early(), 1, tally)
    assert tally == Tally(kills=1, midway=1)
    monkeypatch.setattr(episodes, "_evaluation", evaluation("forgets"))
    kill_evaluations(tmp_path, expected, 1.0, Early(), 1, tally := Tally())
    assert tally.kills == 1 and tally.lost == 0 and tally.duplicated > 0


def test_lines_given_twice_are_counted(tmp_path):
    lines = [json.dumps({"task": "a", "seed": seed, "wall_s": wall}) for seed, wall in ((0, 1), (1, 1), (0, 2))]
    (tmp_path / "lines").write_text("\n".join([*lines, lines[0][:9]]))
    assert twice(tmp_path / "lines") == 1 and twice(tmp_path / "none") == 0


def test_a_recording_that_is_killed_is_the_same(tmp_path, monkeypatch):
    """One real kill, long before it can be finished."""
    from vla.bench import survival_episodes as episodes

    monkeypatch.setattr(episodes, "EPISODES", 60)
    monkeypatch.setattr(episodes, "SHARD", 3)
    settings = RecordConfig(tmp_path / "reference", episodes=60, image_size=32, shard_episodes=3, workers=1)
    record(settings, console=Console(quiet=True))
    kill_recordings(tmp_path, tmp_path / "reference", 0.9, random.Random(0), 1, tally := Tally())
    assert (tally.kills, tally.lost, tally.duplicated, tally.wrong) == (1, 0, 0, "")
