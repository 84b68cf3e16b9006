# SPDX-License-Identifier: Apache-2.0
import io
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from vla.envs.registry import suites
from vla.eval.compare import CompareConfig, compare
from vla.eval.episodes import EpisodeResult, episode_list, named_lists, read_list, read_results
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.summary import summarize

BENCH = "fake_bench"


def config(tmp_path, **changes):
    base = EvalConfig(policy="stub", env="dots", episodes=10, slots=4, workers=1, videos=0, out=tmp_path / "eval")
    return replace(base, **changes)


def run(settings, policy=None):
    return evaluate(settings, policy, registry=BENCH, console=Console(file=io.StringIO()))


def episodes(settings):
    rows = read_results(settings.out / "episodes.jsonl")
    return [replace(row, wall_s=0.0) for row in rows]


@pytest.mark.parametrize("stub", ["hash_policy", "torch_policy"])
def test_slots_workers_and_batches_change_nothing(tmp_path, request, stub):
    policy = request.getfixturevalue(stub)
    one = config(tmp_path, out=tmp_path / "one", slots=1)
    many = config(tmp_path, out=tmp_path / "many", slots=8, workers=2)
    first = run(one, policy)
    assert max(policy.batches) == 1
    second = run(many, policy)
    assert max(policy.batches) > 1
    assert episodes(one) == episodes(many)
    assert len({row.actions_sha256 for row in episodes(one)}) == 10
    assert first["tasks"] == second["tasks"] and first["interval"] == second["interval"]


def test_outputs(tmp_path, hash_policy):
    settings = config(tmp_path, videos=1, episodes=6, instruction="swapped")
    summary = run(settings, hash_policy)
    assert summary == json.loads((settings.out / "summary.json").read_text())
    assert summary["n"] == 6 and set(summary["tasks"]) == {"touch", "circle"}
    assert summary["latency_ms"]["n"] == len(hash_policy.batches) and summary["latency_ms"]["p50"] > 0
    assert summary["manifest"]["versions"]["numpy"] == np.__version__
    low, high = summary["interval"]
    assert 0 <= low <= summary["success"] <= high <= 1
    rows = episodes(settings)
    assert [(r.task, r.seed) for r in rows] == sorted((r.task, r.seed) for r in rows)
    assert all(r.given_instruction != r.instruction for r in rows)
    assert all(r.policy_calls == -(-r.length // 4) for r in rows)
    videos = sorted(path.name for path in (settings.out / "videos").iterdir())
    outcomes = {(r.task, r.success): r.seed for r in reversed(rows)}  # lowest seed of each
    assert videos == sorted(
        f"{task}_{seed}_{'success' if ok else 'failure'}.mp4" for (task, ok), seed in outcomes.items()
    )
    import av

    with av.open(str(settings.out / "videos" / videos[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width) == ("h264", "yuv420p", 192)
        assert float(stream.average_rate) == 20
        length = next(r.length for r in rows if f"{r.task}_{r.seed}_" in videos[0])
        assert sum(1 for _ in container.decode(video=0)) == length + 1


def test_a_perturbed_evaluation_says_so_films_it_and_is_compared_with_one_that_is_not(tmp_path, hash_policy, capsys):
    usual = config(tmp_path, policy="expert", episodes=4, out=tmp_path / "usual")
    perturbed = replace(usual, perturbation="light", videos=1, out=tmp_path / "light")
    run(usual)
    summary = run(perturbed)
    assert summary["name"] == "expert (light)" and summary["manifest"]["perturbation"] == "light"
    hashes = [[row.first_frame_sha256 for row in episodes(settings)] for settings in (usual, perturbed)]
    assert not set(hashes[0]) & set(hashes[1])
    import av

    with av.open(str(next((perturbed.out / "videos").iterdir()))) as container:
        assert abs(np.median(next(container.decode(video=0)).to_ndarray(format="rgb24")) - 90) < 4
    result = compare(CompareConfig(usual.out, perturbed.out))
    assert result["differs"] == {"perturbation": ["none", "light"]} and result["n"] == 4
    assert "differ in perturbation: A none, B light" in capsys.readouterr().out
    with pytest.raises(ValueError, match="same perturbation"):
        run(replace(perturbed, resume=True, perturbation=None))
    both = config(tmp_path, perturbation="light", instruction="paraphrased", episodes=2)
    assert run(both, hash_policy)["name"] == "stub (paraphrased, light)"
    assert all(" what is " in row.given_instruction and " the " in row.instruction for row in episodes(both))


def test_baselines_see_the_same_scenes(tmp_path, hash_policy):
    settings = [config(tmp_path, policy=name, out=tmp_path / name) for name in ("expert", "random")]
    expert, random = map(run, settings)
    assert expert["success"] == 1.0 and random["success"] < 0.5
    assert expert["latency_ms"] == {"p50": None, "p95": None, "n": 0}
    with_pixels = config(tmp_path, out=tmp_path / "policy")
    run(with_pixels, replace_image_size(hash_policy, 64))
    hashes = [[r.first_frame_sha256 for r in episodes(s)] for s in (*settings, with_pixels)]
    assert hashes[0] == hashes[1] == hashes[2]
    again = config(tmp_path, policy="random", out=tmp_path / "again", workers=2)
    run(again)
    assert episodes(again) == episodes(settings[1])


def replace_image_size(policy, size):
    policy.image_size = size
    return policy


def test_a_list_says_which_episodes(tmp_path, hash_policy):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"env": "dots", "seeds": {"circle": [7, 3], "touch": [5]}}))
    settings = config(tmp_path, list=str(path), env="tabletop", episodes=999)
    summary = run(settings, hash_policy)
    assert [(r.task, r.seed) for r in episodes(settings)] == [("circle", 3), ("circle", 7), ("touch", 5)]
    assert summary["suite"] == "mine" and summary["env"] == "dots"
    for content, message in ({"env": "dots"}, "seeds"), ({"env": "dots", "seeds": {"touch": [100_000]}}, "99999"):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            run(replace(settings, overwrite=True), hash_policy)
    with pytest.raises(ValueError, match="metaworld-mt50-500"):
        run(replace(settings, list="mt50", overwrite=True), hash_policy)


@pytest.mark.parametrize("name", named_lists())
def test_lists_never_change_and_are_of_known_tasks(name):
    env, listed = read_list(name)
    _, suite, number = name.split("-")
    assert listed == episode_list(suites(env)[suite], int(number), 0)
    assert name in ("tabletop-demo-200", "tabletop-all-600", "metaworld-mt10-200", "metaworld-mt50-500")


def test_the_mean_of_tiers_weighs_tiers_the_same():
    def result(task, seed, success):
        return EpisodeResult(task, seed, "", "", success, 1, "", 0.0, 1)

    results = [result("a", seed, True) for seed in range(30)] + [result("b", seed, seed < 3) for seed in range(10)]
    results += [result("c", seed, False) for seed in range(10)]
    summary = summarize("x", "s", "e", results, [], 0.0, {}, {"easy": ("a", "b"), "hard": ("c",), "other": ("d",)})
    assert summary["success"] == pytest.approx(33 / 50)
    assert summary["macro"]["tasks"]["success"] == pytest.approx((1 + 0.3 + 0) / 3)
    assert summary["macro"]["tiers"]["success"] == pytest.approx(((1 + 0.3) / 2 + 0) / 2)
    assert summary["tiers"]["easy"]["success"] == pytest.approx(33 / 40) and set(summary["tiers"]) == {"easy", "hard"}


def test_resume_runs_only_what_is_missing(tmp_path, hash_policy):
    whole = config(tmp_path, out=tmp_path / "whole")
    run(whole, hash_policy)
    calls = len(hash_policy.batches)
    cut = config(tmp_path, out=tmp_path / "cut", resume=True)
    cut.out.mkdir()
    lines = (whole.out / "episodes.jsonl").read_text().splitlines(keepends=True)
    (cut.out / "episodes.jsonl").write_text("".join(lines[:7]) + lines[7][:40])  # the crash cut a line
    (cut.out / "config.json").write_text((whole.out / "config.json").read_text())
    summary = run(cut, hash_policy)
    assert summary["n"] == 10 and episodes(cut) == episodes(whole)
    assert len(hash_policy.batches) - calls < calls
    with pytest.raises(ValueError, match="same seed"):
        run(replace(cut, seed=5), hash_policy)


def test_ctrl_c_keeps_what_is_done(tmp_path, hash_policy):
    settings = config(tmp_path, slots=2, episodes=60)
    act = hash_policy.act

    def slow(observations, keys):
        if len(hash_policy.batches) == 40:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        return act(observations, keys)

    hash_policy.batches, hash_policy.act = [], slow
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(settings, hash_policy)
    rows = episodes(settings)
    assert 0 < len(rows) < 60 and not (settings.out / "summary.json").exists()
    assert not multiprocessing.active_children()
    hash_policy.act = act
    assert run(replace(settings, resume=True), hash_policy)["n"] == 60


def test_overwrite_and_folders(tmp_path, hash_policy):
    settings = config(tmp_path, episodes=2, slots=1)
    settings.out.mkdir()
    (settings.out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="--overwrite"):
        run(settings, hash_policy)
    run(replace(settings, overwrite=True), hash_policy)
    assert (settings.out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "moon"}, "environment out of dots"),
        ({"suite": "tier9"}, "suite of dots out of demo"),
        ({"tasks": ("touch", "juggle")}, "got juggle"),
        ({"policy": "no/such/folder"}, "vla train"),
        ({"policy": "random", "instruction": "swapped"}, "reads none"),
        ({"perturbation": "lihgt"}, "did you mean 'light'"),
        ({"perturbation": "distractors"}, "that 'dots' has, out of light"),
        ({"episodes": 1}, "at least one episode a task"),
        ({"first_seed": 99_999}, "evaluation seeds"),
        ({"slots": 0}, "--slots"),
        ({"resume": True, "overwrite": True}, "got both"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    settings = config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        run(settings)
    assert not settings.out.exists()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("action_names", ("dx", "dy"), "4 actions"),
        ("state_names", ("x", "y", "z"), "state x, y"),
        ("n_action_steps", 7, "horizon = 6"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(tmp_path, hash_policy, attribute, value, message):
    setattr(hash_policy, attribute, value)
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path), hash_policy)


def test_nan_names_the_episode(tmp_path, hash_policy):
    act = hash_policy.act

    def broken(observations, keys):
        actions = act(observations, keys)
        actions[:, 1, 2] = np.nan if len(hash_policy.batches) > 3 else 0
        return actions

    hash_policy.act = broken
    with pytest.raises(ValueError, match=r"NaN .* (touch|circle) seed \d"):
        run(config(tmp_path), hash_policy)


def test_a_failing_environment_says_where(tmp_path, hash_policy, monkeypatch):
    monkeypatch.setenv("DOTS_FAIL_AT", "3")
    with pytest.raises(RuntimeError, match="fell off"):
        run(config(tmp_path), hash_policy)
