# SPDX-License-Identifier: Apache-2.0
"""Validation measures what should have been done: episodes that do not say so are left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import tiny_config
from vla import recipes
from vla.train.setup import build
from vla.train.validate import validate


@pytest.fixture(scope="module")
def session(played):
    """Half of the episodes are held out; the first two are films."""
    config = tiny_config(played, "unused", set=("image_size=64", "holdout=0.5"), action_free="0:2")
    session = build(config, recipes.get(config.recipe, config.set), torch.device("cpu"))
    return replace(session, val_episodes=np.arange(len(session.cache.episode_from)))


def kinds(session):
    """(films, played, demonstrated) episodes."""
    every = np.arange(len(session.cache.episode_from))
    played = session.cache.dynamics_only & (every >= 2)
    return every[:2], every[played], every[(every >= 2) & ~played]


def changed(session, episodes):
    """The same session with other labels in these episodes."""
    cache = replace(session.cache, action=np.array(session.cache.action))
    for e in episodes:
        rows = slice(cache.episode_from[e], cache.episode_to[e])
        cache.action[rows] = -cache.action[rows]
    return replace(session, cache=cache)


def test_only_demonstrations_are_validated(session):
    films, played, demonstrated = kinds(session)
    assert len(played) and len(demonstrated)
    found = validate(session)
    assert found == validate(session) and found["val_mae"] > 0 and found["val_loss"] > 0
    assert validate(changed(session, [*films, *played])) == found
    assert validate(replace(session, val_episodes=demonstrated)) == found  # they take no part at all
    moved = validate(changed(session, demonstrated))
    assert moved["val_mae"] != found["val_mae"] and moved["val_loss"] != found["val_loss"]


def test_without_a_demonstration_there_is_nothing_to_say(session):
    """In particular not that the loss is 0, which no checkpoint could ever undercut."""
    films, played, _ = kinds(session)
    assert validate(replace(session, val_episodes=np.array([*films, *played]))) == {}
    assert validate(replace(session, val_episodes=np.zeros(0, np.int64))) == {}


def test_the_error_is_that_of_sampled_actions_in_the_datasets_units(session, monkeypatch):
    """Of steps within the episode, every one of them alike."""
    from vla.train import validate as module

    tokenizer, seen = session.tokenizers.action, []
    decode = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda *a: seen.append(decode(*a)) or seen[-1])
    batches, batch = [], module.Batches.batch
    monkeypatch.setattr(module.Batches, "batch", lambda self, n: batches.append(batch(self, n)) or batches[-1])
    found = validate(session)
    errors = [
        np.abs(actions.numpy() - b["actions"])[~b["is_pad"]].mean() for actions, b in zip(seen, batches, strict=True)
    ]
    assert found["val_mae"] == pytest.approx(np.mean(errors), rel=1e-6) and len(errors) == 4
