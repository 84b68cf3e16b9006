# SPDX-License-Identifier: Apache-2.0
"""Subtasks and plans: in words at every frame, in LeRobot's own columns, and back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run

from vla.data.language import EVENTS, FEATURES, PERSISTENT, language_rows, plan_texts
from vla.data.lerobot_files import read_tables
from vla.data.record import EpisodePlan
from vla.data.record_worker import simulate


def said(tables, frame: int) -> tuple[str | None, str | None]:
    """Plan and subtask of a frame; None where nothing is said."""
    pairs = (tables.plan_index[frame], tables.plans), (tables.subtask_index[frame], tables.subtasks)
    return tuple(None if i < 0 else texts[i] for i, texts in pairs)


def test_a_plan_is_what_is_left_each_phrase_once_and_without_waiting():
    subtasks = ["go", "go", "lower", "go", "lower", "hold still", "close", "lower", "hold still", "hold still"]
    assert plan_texts(subtasks) == [
        "go, lower, close", "go, lower, close", "lower, go, close", "go, lower, close", "lower, close",
        "close, lower", "close, lower", "lower", "", "",
    ]  # fmt: skip
    assert plan_texts(["hold still"]) == [""] and plan_texts([]) == [] and language_rows(["", ""], 10) == ()
    rows = language_rows(subtasks[4:], 10)
    assert [(row.timestamp, row.content) for row in rows if row.style == "plan"] == [
        (0.0, "lower, close"), (0.1, "close, lower"), (0.3, "lower"), (0.4, ""),
    ]  # fmt: skip
    assert [row.content for row in rows if row.style == "subtask"] == ["lower", "hold still", "close", "lower",
                                                                       "hold still"]  # fmt: skip
    assert list(rows) == sorted(rows, key=lambda row: (row.timestamp, row.style))  # LeRobot's order


@pytest.mark.parametrize(
    ("task", "first", "last"),
    [
        ("reach", "move above the {a} block, lower", ""),
        ("lift", "move above the {a} block, lower, close the gripper, lift", ""),
        ("place-in-zone", "move above the {a} block, lower, close the gripper, carry to the {z} zone, open the gripper",
         "rise"),
        ("push-left", "move behind the {a} block, lower, push", "push"),
    ],
)  # fmt: skip
def test_plans_of_the_tabletop(task, first, last):
    pytest.importorskip("mujoco")
    from vla.envs import make_env

    env = make_env("tabletop_state")
    trajectory = simulate(env, EpisodePlan(0, task, 1_000_003, 0.0))
    goal, episode = env.episode.goal, env.episode
    env.close()
    assert trajectory.success and len(trajectory.subtasks) == len(trajectory.action)
    zone = episode.zone_colours[goal.zone]
    plans = plan_texts(trajectory.subtasks)
    assert plans[0].startswith(first.format(a=episode.colours[goal.blocks[0]], z=zone))
    assert plans[-1] == last
    assert max(map(len, plans)) == len(plans[0]) and plans.index(plans[-1]) >= 5


def test_what_is_read_is_what_was_said(dataset):
    """By the very world that was recorded: the clean episodes are played once more."""
    from fake_world import Squares

    tables = read_tables(dataset)
    assert tables.plan_index.min() >= 0 and "" in tables.plans and "hold still" in tables.subtasks
    for episode in (e for e, noise in enumerate(tables.extra["noise"]) if noise == 0):
        task, seed = (tables.extra[name][episode] for name in ("task_template", "seed"))
        again = simulate(Squares(), EpisodePlan(0, task, seed, 0.0))
        frames = range(tables.episode_from[episode], tables.episode_to[episode])
        assert [said(tables, f) for f in frames] == list(zip(plan_texts(again.subtasks), again.subtasks, strict=True))


def test_who_says_nothing_gets_no_columns(tmp_path):
    run(tmp_path / "silent", env="silent", episodes=4, workers=1)
    run(tmp_path / "unasked", plans=False, episodes=4, workers=1)
    for name in ("silent", "unasked"):
        info = json.loads((tmp_path / name / "meta/info.json").read_text())
        assert not {PERSISTENT, EVENTS} & set(info["features"])
        assert not {PERSISTENT, EVENTS} & set(pq.read_schema(next((tmp_path / name / "data").rglob("*.parquet"))).names)
        tables = read_tables(tmp_path / name)
        assert set(tables.plan_index) == {-1} == set(tables.subtask_index) and tables.plans == tables.subtasks == []
    # A recording of before there were plans is gone on with as it was begun.
    record = json.loads((tmp_path / "unasked/meta/recording.json").read_text())
    del record["config"]["plans"]
    (tmp_path / "unasked/meta/recording.json").write_text(json.dumps(record))
    assert run(tmp_path / "unasked", plans=False, episodes=4, workers=1, resume=True)["episodes"] > 0
    with pytest.raises(ValueError, match="plans=False then, True now"):
        run(tmp_path / "unasked", episodes=4, workers=1, resume=True)


# ---- stock LeRobot -----------------------------------------------------------------------------------------


def test_lerobots_own_reader_finds_what_we_write(lerobot_dataset, dataset, cache):
    from lerobot.configs.recipe import MessageTurn, TrainingRecipe
    from lerobot.datasets import language
    from lerobot.datasets.language_render import active_at, render_sample

    assert {name: {**entry, "shape": (1,)} for name, entry in FEATURES.items()} == language.language_feature_info()
    schema = pq.read_schema(dataset / "data/chunk-000/file-000.parquet")
    for name, wanted in ((PERSISTENT, language.language_persistent_row_arrow_type()),
                         (EVENTS, language.language_event_row_arrow_type())):  # fmt: skip
        assert [(f.name, str(f.type).replace("element", "item")) for f in schema.field(name).type.value_type] == [
            (f.name, str(f.type)) for f in wanted
        ]
    stock = lerobot_dataset("local/squares", root=dataset, video_backend="pyav")
    assert stock.meta.has_language_columns
    turns = [MessageTurn("user", "${task}", "high_level"), MessageTurn("assistant", "${plan}", "high_level", True)]
    recipe = TrainingRecipe(messages=turns)
    for episode in (0, 5):
        for row in range(cache.episode_from[episode], cache.episode_to[episode]):
            item = stock.hf_dataset[row]
            rows, t = item[PERSISTENT], float(item["timestamp"])
            assert item[EVENTS] == []
            for style, text in zip(("plan", "subtask"), said(cache, row), strict=True):
                assert active_at(t, persistent=rows, style=style)["content"] == text
            rendered = render_sample(recipe=recipe, persistent=rows, events=[], t=t, sample_idx=row, task="do it")
            assert rendered["messages"][1]["content"] == said(cache, row)[0]
    assert stock[0][PERSISTENT][0]["style"] == "plan"


def test_we_read_what_lerobots_annotator_writes(lerobot_dataset, dataset, tmp_path):
    """Into a dataset without columns, and over our own; a plan is a list of numbered lines there."""
    from lerobot.annotations.steerable_pipeline.executor import Executor
    from lerobot.annotations.steerable_pipeline.reader import iter_episodes
    from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
    from lerobot.annotations.steerable_pipeline.writer import LanguageColumnsWriter

    run(tmp_path / "silent", env="silent")
    shutil.copytree(dataset, tmp_path / "spoken")
    for root in (tmp_path / "silent", tmp_path / "spoken"):
        episodes = list(iter_episodes(root))
        for episode in episodes[1:]:
            begin, second, end = (float(episode.frame_timestamps[i]) for i in (0, 1, -1))
            texts = (
                ("subtask", f"begin {episode.episode_index}", begin),
                ("subtask", "end", end),
                ("plan", "1. a\n2. b", second),
                ("memory", "not ours", second),
            )
            rows = [{"role": "assistant", "style": s, "content": text, "timestamp": t} for s, text, t in texts]
            EpisodeStaging(root / "staged", episode.episode_index).write("plan", rows)
        LanguageColumnsWriter().write_all(episodes, root / "staged", root)
        Executor._ensure_annotation_metadata_in_info(root)
        tables = read_tables(root)
        for episode, (first, end) in enumerate(zip(tables.episode_from, tables.episode_to, strict=True)):
            begun = None if episode == 0 else f"begin {episode}"
            plan = None if episode == 0 else "1. a\n2. b"
            assert said(tables, first) == (None, begun)
            assert end - first < 3 or said(tables, first + 1) == (plan, begun)
            assert said(tables, end - 1) == (plan, begun and "end")
        assert tables.plans == ["1. a\n2. b"] and tables.plan_index.min() == -1
        assert len(lerobot_dataset("local/annotated", root=root, video_backend="pyav")) == len(tables.action)


def test_lerobots_tools_keep_the_columns(lerobot_dataset, dataset, tmp_path):
    """Deleting an episode with lerobot-edit-dataset's function rewrites the tables through pandas."""
    from lerobot.datasets.dataset_tools import delete_episodes

    stock = lerobot_dataset("local/squares", root=dataset, video_backend="pyav")
    delete_episodes(stock, [0, 2], output_dir=tmp_path / "cut", repo_id="local/cut")
    before, after = read_tables(dataset), read_tables(Path(tmp_path / "cut"))
    kept = np.flatnonzero(~np.isin(before.episode_index, [0, 2]))
    assert [said(after, f) for f in range(len(after.action))] == [said(before, f) for f in kept]
