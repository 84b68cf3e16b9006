# SPDX-License-Identifier: Apache-2.0
"""Training on every query at once: who is asked what, what is shown, what is learnt; and runs resume exactly."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_config
from tests.train.conftest import UNIFIED, command
from vla import cli, recipes
from vla.canvas import Segment
from vla.canvas.query import QUERIES, Part, check_trained
from vla.diffusion.limits import Limits
from vla.eval.evaluate import EvalConfig, evaluate
from vla.model import Observed
from vla.policy import Observation, Policy
from vla.train import queries
from vla.train.loop import train
from vla.train.queries import SILENT, TOLD, drawn, shares, trained_queries, written
from vla.train.setup import build, fit_tokenizers


def a_session(dataset, *changes, **settings):
    config = tiny_config(dataset, "unused", set=(*UNIFIED, "precision=float32", *changes), **settings)
    return build(config, recipes.get(config.recipe, config.set), torch.device("cpu"))


@pytest.fixture(scope="module")
def session(played):
    return a_session(played)


def only(session, *names, **changes):
    """The same session, in which these queries alone are learnt."""
    weights = {name: float(name in names) for name in QUERIES}
    changes = {"forecast": 0.0} | changes
    recipe = replace(session.recipe, queries=replace(session.recipe.queries, **weights), **changes)
    return replace(session, recipe=recipe, trained=tuple(names))


# --- which rows are asked what ----------------------------------------------------------------------------------------
WEIGHTS = st.dictionaries(st.sampled_from(sorted(QUERIES)), st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=1)


@given(WEIGHTS.filter(lambda w: sum(w.values()) > 0), st.integers(2, 40), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_a_query_is_asked_about_its_fraction_of_the_rows_that_hear_what_it_gives(weights, batch, untold):
    found = shares(weights, batch, untold)
    assert found.keys() == {name for name, weight in weights.items() if weight > 0}
    told = {name: QUERIES[name].instruction is Part.GIVEN for name in found}
    hear = {row for name, rows in found.items() if told[name] for row in rows.tolist()}
    silent = {row for name, rows in found.items() if not told[name] for row in rows.tolist()}
    assert not hear & silent and (hear | silent) <= set(range(batch))
    room = {True: batch, False: batch} if len(set(told.values())) == 1 else {True: batch - 1, False: batch - 1}
    for name, rows in found.items():
        assert len(rows.unique()) == len(rows) and 1 <= len(rows) <= room[told[name]]
        assert len(rows) <= max(1, round(weights[name] * batch))


def test_rows_are_shared_out_before_they_are_shared():
    found = shares({"policy": 0.25, "plan": 0.25, "inverse": 0.25, "world_model": 0.25}, 8, 0.5)
    assert {n: r.tolist() for n, r in found.items()} == {
        "policy": [0, 1], "plan": [2, 3], "inverse": [4, 5], "world_model": [6, 7]
    }  # fmt: skip
    both = shares({"policy": 1.0, "continuation": 0.5}, 8, 0.5)
    assert both["policy"].tolist() == [*range(8)] and both["continuation"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="a batch of 1 rows is too small"):
        shares({"policy": 1.0, "inverse": 0.5}, 1, 0.5)


def test_a_few_queries_are_drawn_by_their_weights(session):
    """The policy always; in the long run the others as often as their weights say."""
    weights = {"policy": 1.0, "plan": 0.3, "continuation": 0.1, "inverse": 0.3, "label": 0.1, "goal_policy": 0.1}
    steps = [drawn(weights, 0.4, step) for step in range(400)]
    assert steps == [drawn(weights, 0.4, step) for step in range(400)]  # a function of the step
    counts = {name: sum(name in found for found in steps) for name in weights}
    assert counts["policy"] == 400 and all(len(found) == 1 + TOLD + SILENT for found in steps)
    assert counts["plan"] / 400 == pytest.approx(0.75, abs=0.08)
    assert counts["inverse"] > 1.3 * counts["label"] and counts["label"] == pytest.approx(
        counts["goal_policy"], rel=0.3
    )
    drawing = replace(session, recipe=replace(session.recipe, queries=replace(session.recipe.queries, draw=True)))
    asked = {name.split("/")[1] for name in drawing.losses(session.batches.batch(0), 7) if "/" in name}
    expected = drawn({name: 0.4 for name in QUERIES}, session.recipe.queries.untold, 7)
    assert asked == expected.keys() - {"policy"} and len(asked) == TOLD + SILENT


def test_what_nobody_could_answer_is_not_trained(session):
    recipe, tokenizers = session.recipe, session.tokenizers
    assert set(trained_queries(recipe, tokenizers, True)) == set(QUERIES)
    assert set(QUERIES) - set(trained_queries(recipe, tokenizers, False)) == {"plan", "plan_policy"}
    blind = replace(tokenizers, image=None)
    assert set(QUERIES) - set(trained_queries(recipe, blind, True)) == {"world_model", "inverse"}
    assert "joint" not in trained_queries(recipe, blind, False)
    for name in trained_queries(recipe, blind, False):
        check_trained(QUERIES[name], (name,))
    with pytest.raises(ValueError, match="need the codes of future images, and there is no"):
        recipes.get("tabletop_test", ("queries.world_model=0.5",))
    with pytest.raises(ValueError, match="not all of them 0"):
        recipes.get("tabletop_test", ("queries.policy=0", "queries.continuation=0"))


# --- the real command -------------------------------------------------------------------------------------------------
def test_the_checkpoint_carries_its_queries_and_refuses_others(unified, tiny_run):
    config = json.loads((unified / "checkpoints" / "last" / "config.json").read_text())
    assert config["queries"] == list(QUERIES) and Policy.load(unified / "checkpoints" / "last").trained == (*QUERIES,)
    few = json.loads((tiny_run / "checkpoints" / "last" / "config.json").read_text())["queries"]
    assert few == ["policy", "continuation"]
    lines = [json.loads(line) for line in (unified / "metrics.jsonl").read_text().splitlines()]
    told = {name for line in lines for name in line if "/" in name}
    asked = {f"{segment.name.lower()}/{name}" for name, query in QUERIES.items() for segment in query.asked}
    assert told <= asked and {name.split("/")[1] for name in told} == set(QUERIES) - {"policy"}
    assert all(np.isfinite(value) for line in lines for value in line.values())


def test_a_resumed_unified_run_is_bit_identical(unified, played, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(unified / "checkpoints" / "0000003", tmp_path / "checkpoints" / "0000003")
    assert cli.main(command(played, tmp_path, "--resume", "--set", *UNIFIED)) == 0
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (folder / "checkpoints" / "0000006" / name for folder in (tmp_path, unified))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("how", [{"decoding": "plan"}, {"delay": 2}])
def test_a_unified_checkpoint_runs_episodes(unified, tmp_path, how):
    checkpoint = str(unified / "checkpoints" / "last")
    config = EvalConfig(policy=checkpoint, tasks=("reach",), episodes=1, workers=1, out=tmp_path, videos=0, **how)
    assert evaluate(config)["n"] == 1


# --- what is learnt ---------------------------------------------------------------------------------------------------
def test_every_query_has_a_loss_and_every_parameter_a_gradient(session):
    batch = session.batches.batch(0)
    assert session.trained == tuple(QUERIES) and 0 < batch["has_labels"].sum() < 8
    session = replace(session, model=copy.deepcopy(session.model))
    with torch.no_grad():
        for p in session.model.parameters():  # what begins as zero hands no gradient on
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    for name, query in QUERIES.items():
        losses = [only(session, name).losses(batch, step) for step in range(len(query.asked))]
        assert all(torch.isfinite(x["loss"]) and x["loss"] > 0 for x in losses), name
        for found in losses:
            found["loss"].backward()
    together = session.losses(batch, 9)
    together["loss"].backward()
    silent = [n for n, p in session.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent and all(torch.isfinite(x) for x in together.values())
    assert {name.split("/")[1] for name in together if "/" in name} == set(QUERIES) - {"policy"}
    warm = replace(
        session, recipe=replace(session.recipe, queries=replace(session.recipe.queries, policy_warmup_steps=10))
    )
    assert set(warm.losses(batch, 9)) == {"loss", "loss_forecast", "loss_coarse", "loss_fine"}  # the policy alone


def watched(session, monkeypatch):
    """(what is read, what is corrupted): two lists that fill while losses are computed."""
    reads, corruptions, read, corrupt = [], [], session.model.read, queries.corrupt
    monkeypatch.setattr(session.model, "read", lambda context, given: reads.append(given) or read(context, given))

    def noted(digits, pad, key, layout, config, radix=None, begun="", executed=None):
        c = corrupt(digits, pad, key, layout, config, radix, begun, executed)
        corruptions.append({"digits": digits, "begun": begun, "executed": executed, "key": key, "state": c.state})
        return c

    monkeypatch.setattr(queries, "corrupt", noted)
    return reads, corruptions


@pytest.mark.parametrize(
    ("name", "wanted", "begun"),
    [
        ("policy", "labels", ""),
        ("continuation", "labels", "prefix"),
        ("infill", "labels", "any"),
        ("plan_policy", "labels", ""),
        ("goal_policy", "labels", ""),
        ("inverse", "executed", ""),
        ("waypoint_policy", "executed", ""),
    ],
)
def test_policies_learn_labels_and_dynamics_what_was_executed(session, monkeypatch, name, wanted, begun):
    batch = session.batches.batch(1)
    rows = session.rows(batch)
    assert not torch.equal(rows.labels_BHA, rows.executed_BHA)
    _, corruptions = watched(session, monkeypatch)
    only(session, name, full_steps=0).losses(batch, 1)
    ((c,)) = [c for c in corruptions if c["digits"].shape[1:3] == (8, 4)]
    labels, executed = (session.tokenizers.action.encode(x) for x in (rows.labels_BHA, rows.executed_BHA))
    assert c["begun"] == begun and torch.equal(c["executed"], executed)
    assert torch.equal(c["digits"], labels if wanted == "labels" else executed)


@pytest.mark.parametrize("name", ["world_model", "label"])
def test_actions_that_are_given_are_those_that_were_executed(session, monkeypatch, name):
    batch = session.batches.batch(1)
    reads, _ = watched(session, monkeypatch)
    only(session, name).losses(batch, 1)
    (given_,) = [x[Segment.ACTION] for x in reads if Segment.ACTION in x]
    executed = session.tokenizers.action.encode(torch.from_numpy(batch["executed"]))
    assert torch.equal(given_.state.digits_BNSD, executed) and bool((given_.state.known_BNS == 2).all())


def test_in_joint_denoising_some_of_it_has_been_decided_already(session, monkeypatch):
    batch = session.batches.batch(1)
    for step, decided in enumerate(((), (Segment.PLAN,), (Segment.PLAN, Segment.FUTURE_IMAGE))):
        with monkeypatch.context() as patch:
            reads, _ = watched(session, patch)
            found = only(session, "joint").losses(batch, step)
            read = {segment for given_ in reads[1:] for segment in given_}
        assert read == {Segment.PRESENT_IMAGE, *decided} and torch.isfinite(found["loss"])


@pytest.mark.parametrize("validates", [False, True])
def test_what_is_withheld_must_be_found_elsewhere(session, monkeypatch, validates):
    """Pictures only where no instruction is heard, state anywhere, never both; nothing in validation."""
    hard = only(session, "policy", "inverse", drop_images=0.5, drop_state=0.5)
    batches = [session.batches.batch(n) for n in range(8)]
    model = session.averaged if validates else session.model
    seen, read = [], model.read
    monkeypatch.setattr(model, "read", lambda context, given: seen.append(given) or read(context, given))
    for step, batch in enumerate(batches):
        hard.losses(batch, -1 - step if validates else step, session.averaged if validates else None)
    first = [g for g in seen if Segment.OBSERVATION in g]
    told = torch.cat([g[Segment.INSTRUCTION].there_BN.any(1) for g in first])
    observed: list[Observed] = [g[Segment.OBSERVATION] for g in first]
    images, state = (torch.cat([getattr(o, f"sees_{what}_B") for o in observed]) for what in ("images", "state"))
    if validates:
        assert told.all() and images.all() and state.all()
        return
    assert torch.equal(told.view(8, 8).sum(1), torch.full((8,), 5))  # 0.4 of a batch hears nothing
    assert images[told].all() and (images | state).all()
    assert 5 <= (~images).sum() <= 19 and 12 <= (~state).sum() <= 40


def test_films_and_play_teach_what_is_seen_in_them_and_nothing_of_what_should_be_done(session, played):
    films = a_session(played, action_free="0:4")
    batch = films.batches.batch(0)
    film_B, play_B = ~batch["has_actions"], batch["has_actions"] & ~batch["has_labels"]
    assert film_B.any() and play_B.any() and batch["has_labels"].any()
    other = {**batch, "actions": np.where(batch["has_labels"][:, None, None], batch["actions"], np.float32(0.01))}
    for name in ("policy", "infill", "goal_policy", "label", "plan"):  # nothing of what play was labelled with
        ours, theirs = (only(films, name).losses(b, 1)["loss"] for b in (batch, other))
        assert torch.equal(ours, theirs), name
    play = {**batch, "has_labels": np.zeros(8, bool), "has_actions": np.ones(8, bool)}
    film = {**play, "has_actions": np.zeros(8, bool)}
    for name, query in QUERIES.items():
        teaches = [bool(only(films, name).losses(b, 1)["loss"] > 0) for b in (play, film)]
        happened = name in ("inverse", "world_model", "waypoint_policy")  # where the dynamics say it, purpose or not
        seen = not happened and bool({Segment.PLAN, Segment.WAYPOINTS, Segment.FUTURE_IMAGE} & set(query.asked))
        assert teaches == [happened, seen], name
    broken = replace(films.cache, action=np.array(films.cache.action))
    broken.action[: films.cache.episode_to[3]] = np.nan
    assert fit_tokenizers(films.recipe, broken, np.arange(4)).action.to_dict() == films.tokenizers.action.to_dict()
    with pytest.raises(ValueError, match="are action_free: there are no actions to learn from"):
        fit_tokenizers(films.recipe, broken, np.arange(len(broken.episode_from)))


@pytest.mark.parametrize("names", [("policy",), ("policy", "continuation", "world_model", "plan")])
def test_a_batch_in_parts_has_the_same_masks_and_nearly_the_same_gradient(session, names, monkeypatch):
    parts = {"queries": replace(session.recipe.queries, untold=0.5, **{n: 1.0 * (n in names) for n in QUERIES})}
    whole = replace(session, recipe=replace(session.recipe, full_steps=0, **parts), trained=names)
    batch, gradients, masks = session.batches.batch(2) | {"has_labels": np.ones(8, bool)}, [], []
    for count in (1, 2):
        session.model.zero_grad()
        with monkeypatch.context() as patch:
            _, corruptions = watched(session, patch)
            for part in range(count):
                (whole.losses(batch, 5, None, (part, count))["loss"] / count).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in session.model.parameters() if p.grad is not None]))
        rows = {}
        for c in corruptions:
            for row, key in enumerate(c["key"].tolist()):
                rows[key, c["digits"].shape[1:]] = [x[2 * row : 2 * row + 2] for x in vars(c["state"]).values()]
        masks.append(rows)
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(a, b) for k in masks[0] for a, b in zip(masks[0][k], masks[1][k], strict=True))
    one, two = gradients
    assert torch.cosine_similarity(one, two, 0) > 0.97 and 0.9 < two.norm() / one.norm() < 1.15


def test_the_forecast_is_an_aid_of_training_alone(session):
    """It is read off the pictures, of rows that follow a purpose, and nothing that is asked hears of it."""
    batch = session.batches.batch(0)
    without, aided = only(session, "policy"), only(session, "policy", forecast=2.0)
    plain, found = without.losses(batch, 1), aided.losses(batch, 1)
    assert torch.allclose(found["loss"], plain["loss"] + 2 * found["loss_forecast"]) and found["loss_forecast"] > 0
    assert "loss_forecast" not in aided.losses(batch, -1, session.averaged)
    played = {**batch, "has_labels": np.zeros(8, bool), "has_actions": np.ones(8, bool)}
    assert aided.losses(played, 1)["loss_forecast"] == 0
    rows, model = session.rows(batch), session.model
    with torch.no_grad():
        words = session.vocabulary.tokens(rows.words_BL)
        seen = [rows.observed, replace(rows.observed, state_BMS=rows.observed.state_BMS + 1)]
        seen.append(replace(rows.observed, images={c: 255 - x for c, x in rows.observed.images.items()}))
        said = [
            model.states_to_come(model.read(None, {Segment.INSTRUCTION: words, Segment.OBSERVATION: o})) for o in seen
        ]
    assert said[0].shape == rows.waypoints_BKS.shape
    assert torch.equal(said[0], said[1]) and not torch.allclose(said[0], said[2], atol=1e-4)


def test_stop_is_learnt_past_the_end_and_nothing_else_is(played, tmp_path):
    """Where an episode is over only STOP has a loss; a policy with STOP says how long a chunk is meant to be."""
    session = a_session(played, "stop=true")
    batch = session.batches.batch(0)
    rows = session.rows(batch)
    digits, pad = written(session.tokenizers.action, rows.labels_BHA, rows.ended_BH, rows.ended_BH)
    ended = torch.from_numpy(batch["is_pad"])
    assert ended.any() and torch.equal(pad[..., :-1].all(-1), ended) and not pad[..., -1].any()
    assert torch.equal(session.tokenizers.action.ended(digits), ended)
    run = tmp_path / "run"
    train(tiny_config(played, run, set=("stop=true", "image_size=64"), steps=3, val_interval=3))
    policy = Policy.load(run / "checkpoints" / "last")
    limits = Limits(policy.action_names, low=[-0.4] * 3 + [None], high=[0.4] * 3 + [None], change=[0.2] * 3 + [None])
    policy.limit(limits)
    seen = Observation({"front": batch["images"]["front"][0, -1]}, batch["state"][0, -1], "reach the red block")
    chunk = policy.decide([seen], [(0, 0)], committed=[np.zeros((1, 4), np.float32)], previous=np.zeros((1, 4)))
    assert chunk.actions_BHA.shape == (1, 8, 4) and 0 <= chunk.length_B[0] <= 8
    assert (np.abs(chunk.actions_BHA[..., :3]) <= 0.4).all()
    assert chunk.sure_steps(0.0)[0] == max(chunk.length_B[0], 1)
