# SPDX-License-Identifier: Apache-2.0
"""Training on every query at once: all of the network learns, runs resume exactly, eight queries can be measured."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import tiny_config
from vla import recipes
from vla.bench.query_answers import MEASURES, HeldOut, answers, label_in_own_words
from vla.bench.query_limits import broken_limits, changed_prefixes, foreign_tokens
from vla.canvas.query import QUERIES
from vla.data.batches import split_episodes
from vla.data.cache import open_cache
from vla.diffusion.limits import Limits
from vla.eval.evaluate import EvalConfig, evaluate
from vla.policy import Observation, Policy
from vla.tokenizers import ImageTokenizer
from vla.train.loop import train
from vla.train.queries import Asking, written
from vla.train.setup import build, fit_tokenizers


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    """(config, run): six steps of a small unified network on 64 px, with checkpoints at 3 and 6."""
    from vla.data.record import RecordConfig, record

    room = tmp_path_factory.mktemp("unified")
    record(RecordConfig(suite="demo", episodes=10, out=room / "data", shard_episodes=10, workers=1))
    torch.manual_seed(0)
    (room / "image").mkdir()
    ImageTokenizer(64, levels=(5, 3), width=16, cameras=("front",)).save(room / "image")
    queries = ("joint=0.5", "share=0.5", "after=1", "waypoints=1", f"image_tokenizer={room / 'image'}")
    settings = ("image_size=64", "ahead=1", *(f"queries.{setting}" for setting in queries))
    config = tiny_config(room / "data", room / "run", set=settings, steps=6, save_interval=3, val_interval=6)
    train(config)
    return config, room / "run"


def test_a_resumed_unified_run_is_bit_identical(unified, tmp_path):
    config, run = unified
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(run / "checkpoints" / "0000003", tmp_path / "checkpoints" / "0000003")
    train(tiny_config(config.dataset, tmp_path, set=config.set, steps=6, save_interval=3, val_interval=6, resume=True))
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (folder / "checkpoints" / "0000006" / name for folder in (tmp_path, run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_future_images_need_codes(tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"no queries\.image_tokenizer: name one .*, or set queries\.world_model=0"):
        train(tiny_config(tiny_dataset, tmp_path / "run", set=("queries.share=0.5",)))


def test_every_query_has_a_loss_and_every_parameter_a_gradient(unified):
    config, _ = unified
    session = build(config, recipes.get(config.recipe, config.set))
    batch = session.batches.batch(0)
    key_B = torch.arange(8) + 1
    rows = session.rows(batch, slice(0, 8))
    asked = session.recipe.queries.weights()
    asking = Asking(session.model, session.tokenizers, session.vocabulary, session.recipe)
    for name in ("joint", *asked):
        losses = asking.losses(rows, key_B, QUERIES[name])
        assert torch.isfinite(losses["loss"]), name
        expected = {f"loss_{segment.name.lower()}" for segment in QUERIES[name].asked}
        assert expected == losses.keys() - {"loss"}
        losses["loss"].backward()
    first, later = session.losses(batch, 0), session.losses(batch, 1)
    assert (
        first.keys() < later.keys()
        and {"loss_ahead", "loss_read/state", "loss_plan/joint", "loss_coarse/waypoints"} <= later.keys()
    )
    assert not any("/" in name for name in first)  # further questions begin later
    later["loss"].backward()
    silent = [name for name, p in session.model.named_parameters() if p.grad is None]
    assert not silent
    looked = asking.look(rows)
    for name in asked:  # the vision's work may be shared
        shared, own = (asking.losses(r, key_B, QUERIES[name])["loss"] for r in (looked, rows))
        assert torch.allclose(shared, own, atol=1e-5)


def test_films_teach_what_is_seen_in_them_whatever_their_actions_are(unified):
    config, _ = unified
    config = replace(config, action_free="0:5")
    session = build(config, recipes.get(config.recipe, config.set))
    batch, key_B = session.batches.batch(0), torch.arange(8) + 1
    film_B = ~batch["has_actions"]
    assert 0 < film_B.sum() < 8
    other = batch | {"actions": np.where(film_B[:, None, None], np.float32(0.01), batch["actions"])}
    for step in (0, 1):  # the policy; and further questions
        ours, theirs = session.losses(batch, step), session.losses(other, step)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), step
    broken = replace(session.cache, action=np.array(session.cache.action))
    broken.action[: session.cache.episode_to[4]] = np.nan
    fitted = fit_tokenizers(session.recipe, broken, np.arange(5))
    assert fitted.action.to_dict() == session.tokenizers.action.to_dict()
    with pytest.raises(ValueError, match="all 10 episodes are action_free: there are no actions to learn from"):
        fit_tokenizers(session.recipe, broken, np.arange(10))
    rows = replace(session.rows(batch, slice(0, 8)), has_actions_B=torch.zeros(8, dtype=torch.bool))
    rows.pad_BH.fill_(True)
    asking = Asking(session.model, session.tokenizers, session.vocabulary, session.recipe)
    joint = asking.losses(rows, key_B, QUERIES["joint"])
    assert joint["loss_action"] == 0 and joint["loss_future_image"] > 0
    assert asking.losses(rows, key_B, QUERIES["world_model"])["loss"] == 0  # what was done is not known


def test_the_eight_queries_are_measured_beside_an_answer_without_a_network(unified):
    config, run = unified
    cache = open_cache(config.dataset, image_size=64)
    policy = Policy.load(run / "checkpoints" / "last")
    data = HeldOut(policy, cache, *split_episodes(cache, 0.4, 0), seed=0)
    compared = answers(data)
    assert list(compared) == list(MEASURES) and len(compared) == 8
    for name, found in compared.items():
        assert found.ours.shape == found.baseline.shape == (4,), name
        assert np.isfinite(found.ours).all() and np.isfinite(found.baseline).all(), name
    exact = data.action_error(data.chunks(data.frames_B)[0], data.frames_B)
    assert np.abs(exact).max() == 0  # the truth has no error
    assert label_in_own_words(data)[0].ours.shape == (4,)
    assert foreign_tokens(data)[0] == 0
    assert broken_limits(policy, 300) == (0, 300)
    assert changed_prefixes(data, 6) == (1.0, 6)


def test_who_acts_on_waypoints_sees_the_picture_through_them_only(unified):
    _, run = unified
    policy = Policy.load(run / "checkpoints" / "last", decoding="waypoints")
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    seen = [Observation({"front": p}, np.full(4, 0.1, np.float32), "push the red block left") for p in pictures]
    direct = policy.act(seen, [(0, 0)] * 2)
    assert (direct[0] != direct[1]).any()
    policy.model.ahead.weight.data.zero_()
    one, other = policy.act(seen, [(0, 0)] * 2)
    assert (one == other).all()
    moved = replace(seen[0], state=np.full(4, 0.12, np.float32))
    assert (policy.act([moved], [(0, 0)])[0] != one).any()


def test_waypoints_have_to_be_learnt():
    with pytest.raises(ValueError, match=r"acts on what `ahead` tells, and ahead is 0"):
        recipes.get("tabletop_test", ("queries.waypoints=1", "queries.joint=0.5"))
    with pytest.raises(ValueError, match=r"does not act on waypoints: train with queries\.waypoints > 0"):
        Policy.load("tabletop_unified", decoding="waypoints")


def test_a_policy_that_knows_nothing_else_may_act_on_waypoints(tiny_dataset, tmp_path):
    config = tiny_config(
        tiny_dataset, tmp_path / "run", set=("ahead=1", "queries.waypoints=1", "queries.after=1"), steps=3
    )
    train(config)
    policy = Policy.load(tmp_path / "run" / "checkpoints" / "last", decoding="waypoints")
    assert not policy.model.config.unified
    seen = Observation({"front": np.zeros((32, 32, 3), np.uint8)}, np.zeros(4, np.float32), "go")
    assert np.isfinite(policy.act([seen], [(0, 0)])).all()


@pytest.mark.parametrize(
    "how",
    [
        {"decoding": "waypoints"},
        {"decoding": "joint"},
        {"decoding": "one_by_one"},
        {"decoding": "thinking"},
        {"sure_above": 0.01},
        {"delay": 2},
        {"delay": 2, "naive": True},
    ],
)
def test_a_unified_checkpoint_runs_in_every_way(unified, tmp_path, how):
    _, run = unified
    checkpoint = str(run / "checkpoints" / "last")
    videos = 1 if how == {"decoding": "joint"} else 0
    config = EvalConfig(policy=checkpoint, tasks=("reach",), episodes=2, workers=1, out=tmp_path, videos=videos, **how)
    assert evaluate(config)["n"] == 2
    if videos:
        episodes = json.loads((tmp_path / "foresight.json").read_text())
        assert {"now", "predicted", "true"} == episodes[0]["decisions"][0]["pictures"].keys()
        from vla.eval.report import ReportConfig, report

        page = report(ReportConfig(run=tmp_path)).read_text()
        assert "What it expects" in page and "how sure" in page.lower()


def test_stop_is_learnt_past_the_end_and_nothing_else_is(unified, tmp_path):
    """Where an episode is over only STOP has a loss; a policy with STOP says how long a chunk is meant to be."""
    config, _ = unified
    stops = tiny_config(config.dataset, tmp_path / "run", set=(*config.set, "stop=true"), steps=3, val_interval=3)
    session = build(stops, recipes.get(stops.recipe, stops.set))
    batch = session.batches.batch(0)
    rows = session.rows(batch, slice(0, 8))
    digits, pad = written(session.tokenizers.action, rows.actions_BHA, rows.pad_BH, rows.ended_BH)
    ended = torch.from_numpy(batch["is_pad"])
    assert ended.any() and torch.equal(pad[..., :-1].all(-1), ended) and not pad[..., -1].any()
    assert torch.equal(session.tokenizers.action.ended(digits), ended)
    train(stops)
    policy = Policy.load(tmp_path / "run" / "checkpoints" / "last")
    limits = Limits(policy.action_names, low=[-0.4] * 3 + [None], high=[0.4] * 3 + [None], change=[0.2] * 3 + [None])
    policy.limit(limits)
    seen = Observation({"front": batch["images"]["front"][0]}, batch["state"][0], "reach the red block")
    chunk = policy.decide([seen], [(0, 0)], committed=[np.zeros((1, 4), np.float32)], previous=np.zeros((1, 4)))
    assert chunk.actions_BHA.shape == (1, 8, 4) and 0 <= chunk.length_B[0] <= 8
    assert (np.abs(chunk.actions_BHA[..., :3]) <= 0.4).all()
    assert chunk.sure_steps(0.0)[0] == max(chunk.length_B[0], 1)
