# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that acts and answers: observation in, actions with units out.

An observation goes down once, `Encoder` (units to tensors), `read` and `sample` (the network), and comes back once,
`decoding` (tokens to units). Acting is a question like any other: `act` and `ask` are the same function, and give the
same tokens for the same key.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment
from vla.canvas import query as queries
from vla.canvas.query import ASK, QUERIES, PartialActions, Question, check_trained, part_of, waypoint_steps
from vla.canvas.query import Part as QueryPart
from vla.diffusion import Sampling, sample
from vla.diffusion.domain import Domain
from vla.diffusion.likelihood import log_likelihood
from vla.diffusion.limits import Limits, TokenLimits
from vla.diffusion.sampler import Trace, Turns
from vla.model import LatticeModel
from vla.policy import stored
from vla.policy.decoding import answer, joined
from vla.policy.encoding import Encoder, one_shape
from vla.policy.one_graph import OneGraph
from vla.policy.types import Answer, Chunk, Observation
from vla.tokenizers import BinTokenizer, Tokenizers

STOP = "stop"
Decoding = Literal["actions", "plan", "waypoints", "joint", "adaptive_plan"]
NEEDS: dict[str, tuple[str, ...]] = {
    "actions": ("policy",),
    "plan": ("plan", "plan_policy"),
    "waypoints": ("waypoints", "waypoint_policy"),
    "joint": ("joint",),
    "adaptive_plan": ("policy", "plan", "plan_policy"),
}
"""The queries that each way of deciding asks."""


class Policy:
    """A checkpoint that acts. `Policy.load(folder)`, then `act(observations, keys)`, or any question: `ask`."""

    def __init__(
        self,
        model: LatticeModel,
        tokenizers: Tokenizers,
        fps: float,
        sampling: Sampling | None = None,
        n_action_steps: int | None = None,
        seed: int = 0,
        rows: int | None = None,
        sure_above: float = 0.0,
        decoding: Decoding = "actions",
        think_below: float = 0.2,
        trained: Sequence[str] = ("policy", "continuation"),
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """`n_action_steps`: how many steps of a chunk to execute before the next observation (half of it by default).
        `sure_above`: > 0 executes a chunk for as long as it is that sure of all dimensions, 1 step to all of them.
        `decoding`: the actions alone, which is fast; "plan" and "waypoints": first what is still to do, or where the
        robot will be, then actions that follow it; "joint": plan, future image and actions together; "adaptive_plan":
        the actions alone, and a plan first where one of the steps that are to be executed is less sure than
        `think_below`. `rows`: every decision has exactly this many rows, padded; then results do not depend on the
        batch size. None: as many rows as observations (lowest latency). `trained`: the queries that it was trained to
        answer. `precision`: of the arithmetic; bfloat16 pays on GPUs.
        """
        self.model, self.tokenizers, self.fps, self.seed, self.rows = model.eval(), tokenizers, fps, seed, rows
        self.sampling, self.trained, self.precision = sampling or Sampling(), tuple(trained), precision
        self.model.head_of(Segment.ACTION).allowed_ADV.copy_(tokenizers.action.allowed_ADV())
        self.sure_above, self.decoding, self.think_below = sure_above, decoding, think_below
        self._limits: TokenLimits | None = None
        self._graph: OneGraph | None = None
        if decoding not in NEEDS:
            raise ValueError(f"expected a decoding out of {', '.join(NEEDS)}, got {decoding!r}")
        if lacks := [name for name in NEEDS[decoding] if name not in self.trained]:
            raise ValueError(
                f"decoding '{decoding}' asks the queries {', '.join(NEEDS[decoding])}, and this checkpoint was not "
                f"trained for {', '.join(lacks)}, only for {', '.join(self.trained)}; decode 'actions'"
            )
        self.n_action_steps = n_action_steps or max(1, self.horizon // 2)
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ValueError(f"n_action_steps must be in 1..{self.horizon} (the chunk), got {n_action_steps}")

    # --- what it expects and gives -------------------------------------------------------------------------------
    @property
    def horizon(self) -> int:
        return self.tokenizers.action.chunk_steps(self.model.config.horizon)

    @property
    def n_obs_steps(self) -> int:
        """Moments of an observation."""
        return self.model.config.n_obs_steps

    @property
    def waypoint_steps(self) -> tuple[int, ...]:
        """The moments to come of which waypoints are, in steps; () for a policy that knows none."""
        return waypoint_steps(self.horizon) if self.model.config.waypoints else ()

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.model.config.cameras)

    @property
    def action_names(self) -> list[str]:
        return self.tokenizers.action.names

    @property
    def state_names(self) -> list[str]:
        return self.tokenizers.state.names

    @property
    def device(self) -> torch.device:
        return self.model.segment.device

    @property
    def encoder(self) -> Encoder:
        """Units to tensors."""
        return Encoder(self.model, self.tokenizers, self.device)

    def check_names(self, cache: Any) -> None:
        """ValueError unless a dataset (`FrameCache`) has the actions, states and cameras of the policy."""
        for what, ours, theirs in (
            ("actions", self.action_names, cache.action_names),
            ("states", self.state_names, cache.state_names),
            ("cameras", self.cameras, cache.cameras),
        ):
            if list(ours) != list(theirs):
                raise ValueError(f"expected a dataset with the {what} {list(ours)}, got {list(theirs)}")

    def blank(self) -> Observation:
        """An observation of nothing, to warm up with."""
        many = (self.n_obs_steps,) if self.n_obs_steps > 1 else ()
        images = {c: np.zeros((*many, self.image_size, self.image_size, 3), np.uint8) for c in self.cameras}
        return Observation(images, np.zeros((*many, len(self.state_names)), np.float32), "go")

    @property
    def compiled(self) -> bool:
        """Whether it decides in one graph (`compile`)."""
        return self._graph is not None

    # --- acting --------------------------------------------------------------------------------------------------
    def compile(self, rows: int = 1, backend: str = "inductor") -> None:
        """Decide actions in one compiled graph from now on (one_graph.py), `rows` observations at a time, padded.

        Compiles at once, which takes a minute on a CPU. Limits, traces and other queries stay uncompiled.
        """
        self.rows, self._graph = rows, OneGraph(self.model, self.sampling, backend)
        self.act([self.blank()] * rows, [(0, 0)] * rows)

    def act(self, observations: list[Observation], keys: list[tuple[int, int]]) -> np.ndarray:
        """Decide a chunk for every observation. `keys`: (episode seed, environment step), all its randomness.

        Returns float32 (B, H, A) in the dataset's units.
        """
        return self.decide(observations, keys).actions_BHA

    def decide(
        self,
        observations: Sequence[Observation],
        keys: Sequence[tuple[int, int]],
        committed: Sequence[np.ndarray] | None = None,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
        trace: Trace | None = None,
    ) -> Chunk:
        """As `act`, with confidence. `committed`: a row, float (d, A): the first d <= H actions, on their way.

        `previous`, `start`: float (B, A), where limits of change and of reach begin (`limit`). ValueError for no
        observations, another number of keys, and committed actions where they were not trained.
        """
        if not observations or len(observations) != len(keys):
            raise ValueError(
                f"expected at least one observation, and one key for each of {len(observations)}, got {len(keys)} keys"
            )
        questions = [Question(o.images, o.state, o.instruction, executed=o.executed) for o in observations]
        if committed is not None and any(len(x) for x in committed):
            if self.decoding != "actions":
                raise ValueError(f"committed actions need decoding='actions', not '{self.decoding}'")
            asked = [queries.continuation(q, x, self.horizon) for q, x in zip(questions, committed, strict=True)]
            return _chunk(self.ask(asked, keys, previous=previous, start=start, trace=trace))
        if self.decoding in ("plan", "waypoints"):
            return self._decide_by_way(questions, keys, previous, start)
        if self.decoding == "joint":
            asked = [queries.joint(q) for q in questions]
            return _chunk(self.ask([self.known_segments(q) for q in asked], keys, previous=previous, start=start))
        answer = self.ask([queries.policy(q) for q in questions], keys, previous=previous, start=start, trace=trace)
        return self._thought_over(_chunk(answer), questions, keys, previous, start)

    def _decide_by_way(
        self,
        questions: Sequence[Question],
        keys: Sequence[tuple[int, int]],
        previous: np.ndarray | None,
        start: np.ndarray | None,
    ) -> Chunk:
        """First a plan or waypoints, then actions that follow them, given nothing else that is said."""
        by_plan = self.decoding != "waypoints"
        first = self.ask([queries.plan(q) if by_plan else queries.waypoints(q) for q in questions], keys)
        found = first.plan if by_plan else first.waypoints
        assert found is not None
        follow = queries.plan_policy if by_plan else queries.waypoint_policy
        way = found.tokens if by_plan else found.values  # the very words: a text may be spelt in other ones
        asked = [follow(q, value) for q, value in zip(questions, way, strict=True)]
        return _chunk(self.ask(asked, keys, previous=previous, start=start), found.values if by_plan else ())

    def _thought_over(
        self,
        quick: Chunk,
        questions: Sequence[Question],
        keys: Sequence[tuple[int, int]],
        previous: np.ndarray | None,
        start: np.ndarray | None,
    ) -> Chunk:
        """With decoding "adaptive_plan": the chunks that are not sure are decided again, by way of a plan."""
        if self.decoding != "adaptive_plan":
            return quick
        plans = [""] * len(questions)
        unsure = np.flatnonzero(quick.confidence_BHA[:, : self.n_action_steps].min((1, 2)) < self.think_below)
        if not len(unsure):
            return replace(quick, plans=tuple(plans))
        rows = [None if x is None else np.asarray(x)[unsure] if np.ndim(x) > 1 else x for x in (previous, start)]
        slow = self._decide_by_way([questions[i] for i in unsure], [keys[i] for i in unsure], *rows)
        actions_BHA, confidence_BHA, length_B = (
            x.copy() for x in (quick.actions_BHA, quick.confidence_BHA, quick.length_B)
        )
        actions_BHA[unsure], confidence_BHA[unsure] = slow.actions_BHA, slow.confidence_BHA
        length_B[unsure] = slow.length_B
        for row, text in zip(unsure, slow.plans, strict=True):
            plans[row] = text
        return Chunk(actions_BHA, confidence_BHA, length_B, tuple(plans))

    def known_segments(self, question: Question) -> Question:
        """The question without asking for segments that this model does not know."""
        written = self.model.config.written
        return question.but(
            plan=question.plan if Segment.PLAN in written else None,
            future_image=question.future_image if Segment.FUTURE_IMAGE in written else None,
        )

    # --- any question --------------------------------------------------------------------------------------------
    def ask(
        self,
        questions: Sequence[Question],
        keys: Sequence[tuple[int, int]],
        sampling: Sampling | None = None,
        turns: Turns | None = None,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
        trace: Trace | None = None,
    ) -> Answer:
        """Answer questions of one shape (vla/canvas/query.py). `keys`: (episode seed, environment step) of each.

            now = Question(images, state, instruction="push the red block left")
            answer = policy.ask([query.world_model(now, actions)], keys=[(seed, step)])
            answer.future_image.values["front"][0]      uint8 (H, W, 3)

        `sampling`: the policy's by default; with a text there are at least TEXT_STEPS steps. `turns`: which segment is
        filled when; all together by default. `previous`, `start`: where the policy's limits begin, which actions that
        are asked for keep. ValueError for questions of different shapes, a query that was not trained, and values of
        the wrong shape.
        """
        one_shape(questions, keys)
        rows = self.rows or len(questions)
        parts = []
        for begin in range(0, len(questions), rows):
            end = min(begin + rows, len(questions))
            filling = rows - (end - begin)
            padded = [*questions[begin:end], *[questions[end - 1]] * filling]
            padded_keys = [*keys[begin:end], *[keys[end - 1]] * filling]
            bounds = [_rows_of(x, begin, end, filling) for x in (previous, start)]
            parts.append(
                (self._answer(padded, padded_keys, sampling or self.sampling, turns, *bounds, trace), end - begin)
            )
        return parts[0][0] if len(parts) == 1 and parts[0][1] == rows else joined(parts)

    @torch.inference_mode()
    def _answer(
        self,
        questions: Sequence[Question],
        keys: Sequence[tuple[int, int]],
        sampling: Sampling,
        turns: Turns | None,
        previous: np.ndarray | None,
        start: np.ndarray | None,
        trace: Trace | None,
    ) -> Answer:
        """Down once, encode, read, sample; back once, decode."""
        query = one_shape(questions, keys)
        check_trained(query, self.trained, self.model.config.written)
        encoder, asks_actions = self.encoder, Segment.ACTION in query.asked
        given, known, key_B = encoder.given(questions, query), encoder.known(questions, query), self.randomness(keys)
        domain = self._domain(questions, previous, start) if asks_actions else None
        graph = self._graph
        fits = query.asked == (Segment.ACTION,) and len(given) == 2 and domain is None and trace is None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if graph is not None and fits and graph.sampling == sampling:
                found = graph(given, key_B, known.get(Segment.ACTION))
            else:
                context = self.model.read(None, given)
                words = encoder.vocabulary()
                found = sample(self.model, context, key_B, query.asked, sampling, known, domain, words, turns, trace)
        return answer(self.model, self.tokenizers, sampling, found, questions, domain)

    def score(self, questions: Sequence[Question]) -> np.ndarray:
        """How likely the given actions of each question are under the policy, float64 (B,), nats: to rank candidates.

        The log-likelihood of the sampler of two steps: of the coarse digits given nothing, and of the fine ones given
        all coarse ones. ValueError unless the actions are given.
        """
        if any(part_of(q.actions) is not QueryPart.GIVEN for q in questions):
            raise ValueError("a score is of actions that are given, float (H, A): set Question.actions")
        check_trained(QUERIES["policy"], self.trained, self.model.config.written)
        with torch.inference_mode():
            asked = [q.but(actions=ASK, goal_image=None, name="policy") for q in questions]
            context = self.model.read(None, self.encoder.given(asked, QUERIES["policy"]))
            digits_BNSD = self.encoder.actions([q.actions for q in questions])
            return log_likelihood(self.model, context, digits_BNSD).cpu().numpy()

    def randomness(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """The keys of a sampler's rows, int64 (B,), of (episode seed, environment step)."""
        return torch.tensor([randomness.fold_numbers(self.seed, *key) for key in keys], device=self.device)

    # --- limits --------------------------------------------------------------------------------------------------
    def limit(self, limits: Limits | None) -> None:
        """Keep these limits from now on, in every chunk: masks on the logits at every denoising step (limits.py).

        None: no limits. ValueError for limits that cannot be kept, or tokens that are not aligned with time.
        """
        self._limits = None
        if limits is None:
            return
        tokenizer = self.tokenizers.action
        if not isinstance(tokenizer, BinTokenizer):
            raise ValueError(
                f"limits need action tokens that are each a time and a dimension; '{tokenizer.kind}' has none"
            )
        if list(limits.names) != list(self.action_names):
            raise ValueError(f"expected limits of {self.action_names}, got limits of {list(limits.names)}")
        every_VAD = tokenizer.numerals.to_digits(torch.arange(tokenizer.bins))[:, None].expand(-1, tokenizer.dims, -1)
        values_AV = tokenizer.decode(every_VAD).T
        if tokenizer.stops:  # a sub-token without limits
            fields_ = {f.name: (*getattr(limits, f.name), None) for f in fields(Limits)[1:]}
            limits = Limits((*limits.names, STOP), **fields_)
            values_AV = torch.cat([values_AV, torch.arange(tokenizer.bins, dtype=values_AV.dtype)[None]])
        self._limits = TokenLimits(limits, values_AV, tokenizer.allowed_ADV().to(self.device))

    @property
    def limited(self) -> bool:
        """Whether there are limits."""
        return self._limits is not None

    def _domain(
        self, questions: Sequence[Question], previous: np.ndarray | None, start: np.ndarray | None
    ) -> Domain | None:
        """Which tokens the limits leave to chunks; None without limits."""
        if self._limits is None:
            return None
        more = self.model.config.layout.dims - len(self.action_names)  # STOP has no limits

        def whole(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else np.pad(x, [(0, 0)] * (np.ndim(x) - 1) + [(0, more)])

        begun = [q.actions for q in questions]
        done = [
            p.values[: int(p.levels(1).all(1).sum())]
            if isinstance(p, PartialActions) and p.begins
            else np.zeros((0, len(self.action_names)))
            for p in begun
        ]
        known = [np.pad(np.asarray(x), [(0, 0), (0, more)]) for x in done]
        return self._limits.begin(len(questions), self.horizon, whole(previous), whole(start), known)

    # --- checkpoints ---------------------------------------------------------------------------------------------
    def write(self, folder: Path, extra: dict | None = None) -> None:
        """Write the policy's files into `folder` (within `checkpoint.write_folder`)."""
        stored.write(
            folder,
            stored.Stored(self.model, self.tokenizers, self.fps, self.sampling, self.n_action_steps, self.trained),
            extra,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        num_inference_steps: int | None = None,
        n_action_steps: int | None = None,
        **options: Any,
    ) -> "Policy":
        """Load a checkpoint: a folder, or a name of a shipped one ("tabletop_nano"). `options`: as of `Policy`.

        Raises ValueError when it is missing, damaged or of another version.
        """
        found = stored.read(path)
        sampling = found.sampling
        if num_inference_steps is not None:
            sampling = replace(sampling, num_inference_steps=num_inference_steps)
        return cls(
            found.model.to(device),
            found.tokenizers,
            found.fps,
            sampling,
            n_action_steps or found.n_action_steps,
            trained=found.trained,
            **options,
        )


def _chunk(answer: Answer, plans: Sequence[str] = ()) -> Chunk:
    """The actions of an answer."""
    assert answer.actions is not None
    said = plans or (answer.plan.values if answer.plan is not None else ())
    return Chunk(answer.actions.values, answer.actions.confidence, answer.lengths, tuple(said))


def _rows_of(x: np.ndarray | None, begin: int, end: int, filling: int) -> np.ndarray | None:
    """Rows of float (B, A), the last one repeated; (A,) and None stay."""
    if x is None or np.ndim(x) < 2:
        return x
    return np.concatenate([x[begin:end], np.repeat(x[end - 1 : end], filling, 0)])
