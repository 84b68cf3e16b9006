# SPDX-License-Identifier: Apache-2.0
"""Is what is on the canvas heard? Every trained (asked, given) pair with its cheapest controls.

    python benchmarks/heard.py [--policies tabletop_nano tabletop_unified] [--cases 300] [--quick]

For every query that a checkpoint was trained for and everything that it gives, three errors over the same held-out
cases: with the own condition, with another episode's (swapped), and without it (withheld). A pair is *heard* if the
upper end of the 95 % interval of own / swapped is below 0.95, and the own error is below the withheld one. Intervals
resample the cases. All are of test seeds, 50,000 on, that nothing was trained on or chosen by. Then the named rows:
committed actions, the world model, a future image given and decided, plans, infilling where there are two ways, labels
by the cloze alone, and (without --quick) closed loop with a delay. Errors of actions are in spreads (deviations of
the labels), of pictures in squared pixel values, of texts the share that is not exactly right.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vla.bench.results import Row, results, show, write
from vla.canvas import Segment
from vla.canvas import query as queries
from vla.canvas.query import FIELDS, QUERIES, Part, Question, without
from vla.data.language import plan_texts
from vla.data.record import EpisodePlan
from vla.data.record_worker import simulate
from vla.diffusion import sample
from vla.diffusion.sampler import sequential
from vla.envs.registry import make_env, suites
from vla.model import Observed
from vla.policy import Observation, Policy
from vla.policy.decoding import answer
from vla.policy.encoding import one_shape
from vla.train.queries import WHAT_HAPPENED

RESULTS = Path(__file__).parent / "results" / "heard.json"
FIRST_SEED = 50_000
HEARD = 0.95
NOISE, HELD, BURSTS = 0.3, 4, 0.02
"""How the cases are recorded: pushes of this size, held for so many steps, and now and then a burst."""
COMMITTED = 4
ROWS = 50
"""Questions that are asked together."""


@dataclass(frozen=True)
class Case:
    """One moment of a held-out episode, with everything that could be given or asked."""

    now: Question
    """Pictures, state and instruction."""
    labels: np.ndarray
    """float32 (H, A): what the expert would do."""
    executed: np.ndarray
    """float32 (H, A): what was done."""
    there: np.ndarray
    """bool (H,): steps before the end of the episode."""
    plan: str
    waypoints: np.ndarray
    future: dict[str, np.ndarray]
    goal: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    episode: int
    route: str


def record_cases(policy: Policy, tasks: Sequence[str], count: int, first_seed: int = FIRST_SEED) -> list[Case]:
    """One case an episode, at a step drawn from its seed."""
    env = make_env("tabletop", task=tasks[0], image_size=policy.image_size, cameras=policy.cameras)
    cases: list[Case] = []
    number = 0
    while len(cases) < count:
        seed, task = first_seed + number, tasks[number % len(tasks)]
        number += 1
        run = simulate(env, EpisodePlan(number, task, seed, NOISE), HELD, BURSTS)
        if not run.success:
            continue
        draw = np.random.Generator(np.random.Philox(key=seed))
        length, h = len(run.action), policy.horizon
        t = int(draw.integers(0, max(1, length - h // 2)))
        rows = np.minimum(np.arange(t, t + h), length - 1)
        later = int(draw.integers(t + 1, length)) if t + 1 < length else t
        images = run.images

        def at(frame: int, images: dict[str, np.ndarray] = images) -> dict[str, np.ndarray]:
            return {camera: x[frame] for camera, x in images.items()}

        steps = np.array(policy.waypoint_steps, np.int64)
        cases.append(
            Case(
                Question(at(t), run.state[t], run.instruction),
                run.action[rows],
                run.executed[rows],
                np.arange(t, t + h) < length,
                plan_texts(run.subtasks or [""] * length)[t],
                run.state[np.minimum(t + steps, length - 1)] if len(steps) else np.zeros((0, 4), np.float32),
                at(min(t + h, length - 1)),
                at(later),
                at(length - 1),
                number,
                env.episode.goal.word,
            )
        )
    env.close()
    return cases


# --- asking with a condition of one's own, another's, or none --------------------------------------------------------
def question(case: Case, name: str, horizon: int) -> Question:
    """The query `name` about a case, with everything its own."""
    now = case.now
    if name in ("policy", "plan", "waypoints", "joint"):
        return getattr(queries, name)(now)
    if name == "continuation":
        return queries.continuation(now, case.executed[:COMMITTED], horizon)
    if name == "infill":
        known = np.zeros(case.labels.shape, bool)
        known[-horizon // 4 :] = True
        return queries.infill(now, case.labels, known)
    values: dict[str, tuple[Any, ...]] = {
        "plan_policy": (case.plan,),
        "waypoint_policy": (case.waypoints,),
        "world_model": (case.executed,),
        "inverse": (case.future,),
        "goal_policy": (case.goal,),
        "label": (case.executed, case.last),
    }
    return getattr(queries, name)(now, *values[name])


def conditions(policy: Policy, name: str) -> list[str]:
    """What a query gives: pictures, state, and the fields of a question."""
    query = without(QUERIES[name], policy.model.config.written)
    given = ["images", "state", *(FIELDS[s] for s in query.given)]
    return given + (["some actions"] if query.actions in (Part.PREFIX, Part.PARTLY) else [])


def swapped(questions: Sequence[Question], condition: str) -> list[Question]:
    """Each question with the condition of another one that differs."""
    field = "actions" if condition == "some actions" else condition
    found = []
    for i, own in enumerate(questions):
        donor = own
        for step in range(1, len(questions)):
            donor = questions[(i + step) % len(questions)]
            if not isinstance(getattr(own, field), str) or getattr(own, field) != getattr(donor, field):
                break
        found.append(own.but(**{field: getattr(donor, field)}))
    return found


def ask(policy: Policy, questions: Sequence[Question], withheld: str = "", turns: Any = None) -> list[Any]:
    """Answers, in parts of ROWS. `withheld`: this condition is not read."""
    answers = []
    for begin in range(0, len(questions), ROWS):
        part = questions[begin : begin + ROWS]
        query = one_shape(part, part)
        with torch.inference_mode():
            given, known = policy.encoder.given(part, query), policy.encoder.known(part, query)
            given, known = _without(given, known, withheld, len(part))
            key_B = policy.randomness([(begin + i, 0) for i in range(len(part))])
            words = policy.encoder.vocabulary()
            context = policy.model.read(None, given)
            found = sample(policy.model, context, key_B, query.asked, policy.sampling, known, None, words, turns)
            answers.append(answer(policy.model, policy.tokenizers, policy.sampling, found, part, None))
    return answers


def _without(given: dict, known: dict, condition: str, rows: int) -> tuple[dict, dict]:
    given, nobody = dict(given), torch.zeros(rows, dtype=torch.bool)
    seen = given[Segment.OBSERVATION]
    assert isinstance(seen, Observed)
    if condition == "images":
        given[Segment.OBSERVATION] = replace(seen, sees_images_B=nobody)
    elif condition == "state":
        given[Segment.OBSERVATION] = replace(seen, sees_state_B=nobody)
    elif condition == "some actions":
        known = {}
    elif condition:
        del given[next(s for s, field in FIELDS.items() if field == condition)]
    return given, known


def errors(policy: Policy, name: str, cases: Sequence[Case], answers: Sequence[Any]) -> dict[str, np.ndarray]:
    """{what was asked: the error of each case}."""
    found: dict[str, np.ndarray] = {}
    if answers[0].actions is not None:
        values = np.concatenate([a.actions.values for a in answers])
        wanted = np.stack([c.executed if name in WHAT_HAPPENED else c.labels for c in cases])
        there = np.stack([c.there for c in cases])
        if name == "continuation":
            there[:, :COMMITTED] = False
        if name == "infill":
            there[:, -policy.horizon // 4 :] = False
        found["actions"] = action_error(policy, values, wanted, there)
    if answers[0].waypoints is not None:
        values, wanted = np.concatenate([a.waypoints.values for a in answers]), np.stack([c.waypoints for c in cases])
        spread = wanted.reshape(-1, wanted.shape[-1]).std(0) + 1e-6
        found["waypoints"] = (np.abs(values - wanted) / spread).mean((1, 2))
    if answers[0].future_image is not None:
        found["future_image"] = sum(
            (
                (
                    np.concatenate([a.future_image.values[c] for a in answers]).astype(np.float32)
                    - np.stack([case.future[c] for case in cases])
                )
                ** 2
            ).mean((1, 2, 3))
            for c in policy.cameras
        ) / len(policy.cameras)
    for field, wanted_of in (("plan", lambda c: c.plan), ("instruction", lambda c: c.now.instruction)):
        if getattr(answers[0], field) is not None:
            texts = [text for a in answers for text in getattr(a, field).values]
            found[field] = np.array([text != wanted_of(c) for text, c in zip(texts, cases, strict=True)], float)
    return found


def action_error(policy: Policy, values: np.ndarray, wanted: np.ndarray, there_BH: np.ndarray) -> np.ndarray:
    """float (B,): mean absolute error in spreads over the steps that are there, of dimensions that are not binary."""
    dims = ~np.array(policy.tokenizers.action.binary)
    spread = wanted[there_BH][:, dims].std(0) + 1e-6
    error_BH = (np.abs(values - wanted)[..., dims] / spread).mean(-1)
    return (error_BH * there_BH).sum(1) / np.maximum(there_BH.sum(1), 1)


# --- intervals -------------------------------------------------------------------------------------------------------
def ratio(own: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """mean(own) / mean(other) of the same cases, and its 95 % interval by resampling cases."""
    draw = np.random.default_rng(0).integers(0, len(own), (4000, len(own)))
    many = own[draw].mean(1) / np.maximum(other[draw].mean(1), 1e-9)
    low, high = np.quantile(many, [0.025, 0.975])
    return float(own.mean() / max(other.mean(), 1e-9)), (float(low), float(high))


def ratio_row(
    row_id: str, own: np.ndarray, other: np.ndarray, most: float | None, ends: float | None, note: str
) -> Row:
    """A ratio with its goal: at most `most`, the interval's upper end at most `ends`."""
    value, interval = ratio(own, other)
    goal, passes = "", None
    if most is not None:
        goal, passes = f"at most {most:g}", value <= most
        if ends is not None:
            goal, passes = f"{goal}, interval below {ends:g}", passes and interval[1] < ends + 1e-9
    note = f"{own.mean():.3f} against {other.mean():.3f}; {note}"
    return Row(row_id, value, "ratio", len(own), interval, goal, passes, note)


# --- the rows --------------------------------------------------------------------------------------------------------
def pair_rows(label: str, policy: Policy, cases: Sequence[Case]) -> list[Row]:
    """Every trained (asked, given) pair of a policy."""
    rows = []
    for name in policy.trained:
        own_questions = [question(case, name, policy.horizon) for case in cases]
        if name == "joint":
            own_questions = [policy.known_segments(q) for q in own_questions]
        own = errors(policy, name, cases, ask(policy, own_questions))
        for condition in conditions(policy, name):
            other = errors(policy, name, cases, ask(policy, swapped(own_questions, condition)))
            none = errors(policy, name, cases, ask(policy, own_questions, withheld=condition))
            for asked in own:
                value, interval = ratio(own[asked], other[asked])
                rows.append(
                    Row(
                        f"{label}/{name}: {asked} given {condition}",
                        value,
                        "ratio",
                        len(cases),
                        interval,
                        f"interval below {HEARD:g}, own below withheld",
                        interval[1] < HEARD and bool(own[asked].mean() < none[asked].mean()),
                        f"own {own[asked].mean():.3f}, swapped {other[asked].mean():.3f}, "
                        f"withheld {none[asked].mean():.3f}",
                    )
                )
    return rows


def committed_rows(label: str, policy: Policy, count: int) -> list[Row]:
    """Steps after four committed actions that were executed, against a fresh decision then; told and not told."""
    rows = []
    dims = ~np.array(policy.tokenizers.action.binary)
    gripper = list(policy.action_names).index("gripper")
    tasks = suites("tabletop")["demo"]
    env = make_env("tabletop", task=tasks[0], image_size=policy.image_size, cameras=policy.cameras)
    for kind, row_id in (("uniform", "committed_ratio"), ("push", "committed_ratio_push")):
        before, after, pushes = [], [], []
        for number in range(count):
            seed = FIRST_SEED + number
            draw = np.random.Generator(np.random.Philox(key=seed))
            seen, info = env.reset(seed=seed, options={"task": tasks[number % len(tasks)]})
            ended = False
            for _ in range(int(draw.integers(0, 6))):
                if not ended:
                    seen, _, terminated, truncated, info = env.step(env.expert_action())
                    ended = terminated or truncated
            before.append(_observation(seen, info))
            push = draw.uniform(-1, 1, (COMMITTED, len(dims))).astype(np.float32)
            push = np.repeat(push[:1], COMMITTED, axis=0) if kind == "push" else push
            push[:, gripper] = env.expert_action()[gripper]
            for action in push:
                seen, _, _, _, info = env.step(action)
            after.append(_observation(seen, info))
            pushes.append(push)
        keys = [(number, 0) for number in range(count)]
        told, not_told, fresh = [], [], []
        for begin in range(0, count, ROWS):
            part = slice(begin, begin + ROWS)
            told.append(policy.decide(before[part], keys[part], pushes[part]).actions_BHA)
            not_told.append(policy.act(before[part], keys[part]))
            fresh.append(policy.act(after[part], keys[part]))
        steps = min(COMMITTED, policy.horizon - COMMITTED)
        wanted = np.concatenate(fresh)[:, :steps][..., dims]
        spread = wanted.reshape(-1, wanted.shape[-1]).std(0)
        error = [
            (np.abs(np.concatenate(x)[:, COMMITTED : COMMITTED + steps][..., dims] - wanted) / spread).mean((1, 2))
            for x in (told, not_told)
        ]
        note = f"{label}, {kind} actions executed: error of the next {steps} steps, told against not told"
        rows.append(ratio_row(_named(row_id, label), error[0], error[1], 0.6, 0.7, note))
    env.close()
    return rows


def _named(row_id: str, label: str) -> str:
    return row_id if label == "tabletop_nano" else f"{row_id}_{label.removeprefix('tabletop_')}"


def _observation(seen: Any, info: Any) -> Observation:
    images = {camera: x.copy() for camera, x in seen["pixels"].items()}
    return Observation(images, np.array(seen["agent_pos"], np.float32), info["instruction"])


def unified_rows(policy: Policy, cases: Sequence[Case], count: int) -> list[Row]:
    """The named rows of a checkpoint that answers every query."""

    def both(name: str, condition: str, cases: Sequence[Case], asked: str) -> tuple[np.ndarray, np.ndarray]:
        own = [question(case, name, policy.horizon) for case in cases]
        found = [ask(policy, own), ask(policy, swapped(own, condition))]
        own_error, other_error = (errors(policy, name, cases, x)[asked] for x in found)
        return own_error, other_error

    rows = [
        ratio_row("world_model_ratio", *both("world_model", "actions", cases, "future_image"), 0.8, 1.0,
                  "squared error of the future image, own actions against another episode's"),
        extremes_row(policy, cases[: max(20, count // 5)]),
        ratio_row("future_given_ratio", *both("inverse", "future_image", cases, "actions"), 0.5, None,
                  "actions after the true future image, own against another episode's"),
        future_block_row(policy, cases),
        ratio_row("plan_ratio", *both("plan_policy", "plan", cases, "actions"), 0.5, None,
                  "actions given a plan and no instruction, own against another episode's"),
    ]  # fmt: skip
    routes = record_cases(policy, suites("tabletop")["routes"], count)
    rows.append(infill_row(policy, routes))
    rows.append(label_row(policy, count))
    return rows


def extremes_row(policy: Policy, cases: Sequence[Case]) -> Row:
    """Do the pictures after all-right and all-left differ where the hand then is? Correlation with the truth."""
    tasks, values = suites("tabletop")["demo"], []
    env = make_env("tabletop", task=tasks[0], image_size=policy.image_size, cameras=policy.cameras)
    camera = policy.cameras[0]
    for number in range(len(cases)):
        seen, info = env.reset(seed=FIRST_SEED + number, options={"task": tasks[number % len(tasks)]})
        o = _observation(seen, info)
        true, made = [], []
        for sign in (1.0, -1.0):
            chunk = np.zeros((policy.horizon, len(policy.action_names)), np.float32)
            chunk[:, 0], chunk[:, -1] = sign, env.idle_action[-1]
            now = Question(o.images, o.state)
            found = policy.ask([queries.world_model(now, chunk)], [(number, 0)])
            assert found.future_image is not None
            made.append(found.future_image.values[camera][0].astype(np.float32))
            env.reset(seed=FIRST_SEED + number)
            for action in chunk:
                seen = env.step(action)[0]
            true.append(seen["pixels"][camera].astype(np.float32))
        a, b = (true[0] - true[1]).ravel(), (made[0] - made[1]).ravel()
        values.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9)))
    env.close()
    array = np.array(values)
    draw = array[np.random.default_rng(0).integers(0, len(array), (4000, len(array)))].mean(1)
    low, high = np.quantile(draw, [0.025, 0.975])
    note = "dx = +1 against dx = -1: correlation of the predicted with the true difference of the pictures"
    return Row("world_model_extremes", float(array.mean()), "correlation", len(array), (float(low), float(high)),
               "at least 0.3", bool(array.mean() >= 0.3), note)  # fmt: skip


def future_block_row(policy: Policy, cases: Sequence[Case]) -> Row:
    """As `future_given_ratio`, but the future image is a block that the sampler has decided, and then reads."""
    turns = sequential((Segment.FUTURE_IMAGE, Segment.ACTION), policy.sampling.num_inference_steps)

    def decided(pictures: Sequence[Case]) -> np.ndarray:
        values = []
        for begin in range(0, len(cases), ROWS):
            part, shown = cases[begin : begin + ROWS], pictures[begin : begin + ROWS]
            asked = [queries.inverse(c.now, s.future) for c, s in zip(part, shown, strict=True)]
            with torch.inference_mode():
                given = dict(policy.encoder.given(asked, asked[0].query))
                codes = given.pop(Segment.FUTURE_IMAGE).state
                key_B = policy.randomness([(begin + i, 0) for i in range(len(part))])
                both = (Segment.FUTURE_IMAGE, Segment.ACTION)
                known = {Segment.FUTURE_IMAGE: codes}
                context = policy.model.read(None, given)
                found = sample(policy.model, context, key_B, both, policy.sampling, known, None, None, turns)
                values.append(
                    answer(policy.model, policy.tokenizers, policy.sampling, found, asked, None).actions.values
                )
        wanted, there = np.stack([c.executed for c in cases]), np.stack([c.there for c in cases])
        return action_error(policy, np.concatenate(values), wanted, there)

    note = "the same with the true future image as a block that has been decided"
    return ratio_row("future_block_ratio", decided(cases), decided([*cases[1:], cases[0]]), 0.5, None, note)


def infill_row(policy: Policy, cases: Sequence[Case]) -> Row:
    """Two ways round a wall: the last quarter of the chunk is given, of this episode or of one on the other side."""

    def other_side(i: int) -> Case:
        return next(c for step in range(1, len(cases))
                    if (c := cases[(i + step) % len(cases)]).route != cases[i].route)  # fmt: skip

    own = [question(case, "infill", policy.horizon) for case in cases]
    swap = [q.but(actions=question(other_side(i), "infill", policy.horizon).actions) for i, q in enumerate(own)]
    found = [errors(policy, "infill", cases, ask(policy, x))["actions"] for x in (own, swap)]
    note = "two routes round a wall: actions given the last steps, own against those of an episode on the other side"
    return ratio_row("infill_ratio", *found, 0.7, None, note)


def label_row(policy: Policy, count: int) -> Row:
    """The instruction of a whole episode, from its pictures and actions, by the cloze alone: a vote of its frames."""
    from vla.eval.statistics import wilson_interval

    tasks = suites("tabletop")["demo"]
    env = make_env("tabletop", task=tasks[0], image_size=policy.image_size, cameras=policy.cameras)
    right = done = number = 0
    while done < count:
        seed, task = FIRST_SEED + number, tasks[number % len(tasks)]
        number += 1
        run = simulate(env, EpisodePlan(number, task, seed, 0.1), HELD)
        if not run.success:
            continue
        length, h = len(run.action), policy.horizon
        frames = np.unique(np.linspace(0, max(length - h // 2, 1) - 1, 8).astype(int))
        last = {c: x[-1] for c, x in run.images.items()}
        asked = [
            queries.label(Question({c: x[t] for c, x in run.images.items()}, run.state[t]),
                          run.executed[np.minimum(np.arange(t, t + h), length - 1)], last)
            for t in frames
        ]  # fmt: skip
        found = policy.ask(asked, [(seed, int(t)) for t in frames]).instruction
        assert found is not None
        votes: dict[str, float] = {}
        for text, sure in zip(found.values, found.confidence.prod(1), strict=True):
            votes[text] = votes.get(text, 0.0) + float(sure)
        right += max(votes, key=votes.__getitem__) == run.instruction
        done += 1
    env.close()
    note = "whole sentence right, of the suite's sentences; frames vote, each as loudly as it is sure"
    return Row("label_accuracy_cloze", right / done, "fraction", done, wilson_interval(right, done), "at least 0.5",
               right / done >= 0.5, note)  # fmt: skip


def delay_rows(name: str, episodes: int, delay: int = 8) -> list[Row]:
    """Closed loop on tiers 2 and 3, a delay of eight steps: told what is executed meanwhile, not told, no delay."""
    from vla.eval.episodes import read_results
    from vla.eval.evaluate import EvalConfig, evaluate

    tasks = (*suites("tabletop")["tier2"], *suites("tabletop")["tier3"])
    runs: dict[str, dict[tuple[str, int], bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways: tuple[tuple[str, dict[str, Any]], ...] = (
            ("committed", {"delay": delay}),
            ("naive", {"delay": delay, "naive": True}),
            ("none", {}),
        )
        for way, settings in ways:
            out = Path(folder) / way
            evaluate(EvalConfig(policy=name, tasks=tasks, episodes=episodes, first_seed=FIRST_SEED, name=way,
                                out=out, videos=0, **settings), console=Console(highlight=False))  # fmt: skip
            runs[way] = {(r.task, r.seed): r.success for r in read_results(out / "episodes.jsonl")}
    scenes = sorted(runs["none"])
    told, naive, free = (np.array([runs[way][s] for s in scenes], float) for way in ("committed", "naive", "none"))

    def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
        gains = 100 * (a - b)
        draw = gains[np.random.default_rng(0).integers(0, len(gains), (4000, len(gains)))].mean(1)
        return float(gains.mean()), (float(np.quantile(draw, 0.025)), float(np.quantile(draw, 0.975)))

    gain, loss = difference(told, naive), difference(free, told)
    success = f"no delay {100 * free.mean():.1f} %, told {100 * told.mean():.1f} %, not told {100 * naive.mean():.1f} %"
    n = len(scenes)
    return [
        Row(f"delay_gain_{delay}", gain[0], "points", n, gain[1], "interval above 0", gain[1][0] > 0,
            f"{name}, tiers 2 and 3, success told minus not told, paired scenes; {success}"),
        Row(f"delay_loss_{delay}", loss[0], "points", n, loss[1], "at most 10", loss[0] <= 10,
            f"{name}, success without a delay minus told"),
    ]  # fmt: skip


def run(policies: Sequence[str], count: int, closed_loop: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All rows."""
    rows: list[Row] = []
    for name in policies:
        policy = Policy.load(name)
        label = Path(name).name
        say(f"{label}: trained for {', '.join(policy.trained)}")
        cases = record_cases(policy, suites("tabletop")["demo"], count)
        rows += pair_rows(label, policy, cases)
        rows += committed_rows(label, policy, count)
        if "world_model" in policy.trained:
            rows += unified_rows(policy, cases, count)
        elif closed_loop:
            rows += delay_rows(name, max(300, count))
    pairs = [row for row in rows if " given " in row.id]
    heard = sum(bool(row.passes) for row in pairs)
    rows.append(Row("pairs_trained", len(pairs), "pairs"))
    rows.append(Row("pairs_heard", heard, "pairs", len(pairs), goal="all trained pairs", passes=heard == len(pairs)))
    return results("heard", rows, f"cases of seeds {FIRST_SEED}.. of each task", {"cases": count})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["tabletop_nano", "tabletop_unified"])
    parser.add_argument("--cases", type=int, default=0, help="300; 40 with --quick")
    parser.add_argument("--quick", action="store_true", help="40 cases, no closed loop, nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(highlight=False)
    count = arguments.cases or (40 if arguments.quick else 300)
    measured = run(arguments.policies, count, not arguments.quick, console.print)
    if not arguments.quick:
        write(measured, arguments.results)
    show(measured, console)
    values = {row["id"]: row["value"] for row in measured["rows"]}
    print(
        json.dumps({"bench": "heard", "pairs_heard": values["pairs_heard"], "pairs_trained": values["pairs_trained"]})
    )


if __name__ == "__main__":
    main()
