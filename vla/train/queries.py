# SPDX-License-Identifier: Apache-2.0
"""Which queries a batch is asked, and what is learnt from each: every query is a mask pattern (vla/canvas/query.py).

Some rows of a batch hear the instruction, the others do not; all are read together. Then each query's rows read what
else it gives, and are asked. Several queries may be asked about the same rows: what is dear is to look at pictures.

Actions that are given (to a world model, as a beginning, as what a label describes) and those that are asked where they
must explain what happened (inverse dynamics, waypoints) are the executed ones; a policy's targets are the expert's
labels. A dataset that has one of them has it twice. Rows without actions (video) are asked for pictures and plans only,
and episodes without a demonstrator (`dynamics_only`) for what follows from actions.

Shapes: B rows, H steps, A dimensions, L words, K waypoints, N positions, D digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vla import processes, randomness
from vla.canvas import Segment, unmasked
from vla.canvas.query import QUERIES, Part, Query, without
from vla.diffusion import Corrupted, CorruptionConfig, corrupt, denoising_losses, total_loss
from vla.diffusion.corruption import Begun
from vla.diffusion.lengths import Vocabulary, corrupt_text
from vla.model import Context, LatticeModel, Observed, Tokens
from vla.model.transformer import Given
from vla.recipes import Recipe
from vla.tokenizers import ActionTokenizer, BinTokenizer, Tokenizers

CODES = CorruptionConfig(p_full_mask=0.5, p_keep_coarse=0.3, p_coarse_only=0.3, p_structured=0, p_wrong=0)
"""Corruption of image codes and waypoints: single positions, nothing false."""
WHAT_HAPPENED = ("inverse", "waypoint_policy", "world_model")
"""Queries about the dynamics: what was executed, whoever chose it."""


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a batch, on the device."""

    observed: Observed
    words_BL: Tensor
    """int64, the instruction; 0 behind its end."""
    labels_BHA: Tensor
    """float, the dataset's units: what the expert would do."""
    executed_BHA: Tensor
    """float, the dataset's units: what was done."""
    ended_BH: Tensor
    """bool: past the end of the episode."""
    has_labels_B: Tensor
    """bool: whether there is an expert's label to learn from."""
    has_actions_B: Tensor
    """bool: whether there are executed actions."""
    plan_BL: Tensor | None = None
    """int64, 0 behind the end."""
    has_plan_B: Tensor | None = None
    """bool: whether the dataset says what the plan is."""
    waypoints_BKS: Tensor | None = None
    """float, the dataset's units: robot states to come."""
    pictures: Mapping[str, Mapping[str, Tensor]] | None = None
    """"future", "goal" and "last" -> a camera: uint8 (B, H, W, 3)."""

    @property
    def purposeful_B(self) -> Tensor:
        """bool: whether what happens follows the instruction: in demonstrations, and in videos of them."""
        return self.has_labels_B | ~self.has_actions_B


def shares(weights: Mapping[str, float], batch: int, untold: float) -> dict[str, Tensor]:
    """The rows that each query is asked about, {query: int64 (rows,)}, at least one each.

    A weight is a fraction of the batch. The last `untold` of the batch (a fraction) hears no instruction: the queries
    without one are asked about these rows, the others about the rows before. Where the weights are more than there are
    rows, several queries are asked about the same rows, which are read only once.
    """
    names = [name for name, weight in weights.items() if weight > 0]
    silent = [name for name in names if QUERIES[name].instruction is not Part.GIVEN]
    if silent and len(silent) < len(names):
        if batch < 2:
            raise ValueError(
                f"a batch of {batch} rows is too small for queries with and without an instruction: raise it"
            )
        told = min(max(1, round((1 - untold) * batch)), batch - 1)
    else:
        told = 0 if silent else batch
    found: dict[str, Tensor] = {}
    begin = {True: 0, False: 0}
    for name in names:
        hears = name not in silent
        first, size = (0, told) if hears else (told, batch - told)
        count = min(max(1, round(weights[name] * batch)), size)
        found[name] = (first + (begin[hears] + torch.arange(count)) % size).sort().values
        begin[hears] += count
    return found


TOLD, SILENT = 1, 2
"""Where queries are drawn: how many of those with an instruction, beside the policy, and of those without."""


def drawn(weights: Mapping[str, float], untold: float, step: int) -> dict[str, float]:
    """The queries of one step, a function of its number: the policy, and a few others by their weights.

    Those with an instruction are asked about as many rows as are silent, those without about all of these.
    """
    draw = np.random.Generator(np.random.Philox(key=step))
    found = {name: weight for name, weight in weights.items() if name == "policy"}
    silent = [name for name in weights if QUERIES[name].instruction is not Part.GIVEN]
    told = [name for name in weights if name not in silent and name != "policy"]
    for names, count in ((told, TOLD), (silent, SILENT)):
        if names:
            share = np.array([weights[name] for name in names])
            chosen = draw.choice(len(names), min(count, len(names)), replace=False, p=share / share.sum())
            found |= {names[i]: untold for i in sorted(chosen)}
    return found


def trained_queries(recipe: Recipe, tokenizers: Tokenizers, plans: bool, cameras: bool = True) -> tuple[str, ...]:
    """The queries of a recipe that data and tokenizers can answer."""
    lacks = set() if cameras else {"world_model", "inverse", "goal_policy", "label"}
    if not plans:
        lacks |= {"plan", "plan_policy"}
    if tokenizers.image is None:
        lacks |= {"world_model", "inverse"}
    if not plans and tokenizers.image is None:
        lacks |= {"joint"}
    if not tokenizers.action.time_aligned:
        lacks |= {"continuation", "infill"}
    return tuple(name for name, weight in recipe.queries.weights().items() if weight and name not in lacks)


def written(tokenizer: ActionTokenizer, actions_BHA: Tensor, pad_BH: Tensor, ended_BH: Tensor) -> tuple[Tensor, Tensor]:
    """The digits of actions, and what of them is not to be learnt: bool (B, H), or (B, H, S) where there is a STOP.

    STOP is known past the end of an episode too: it says that this is the end.
    """
    if not tokenizer.time_aligned:  # a position speaks about all steps; past the end the last action was repeated
        digits = tokenizer.encode(actions_BHA)
        whole = pad_BH.all(1, keepdim=True).expand(-1, digits.shape[1])
        return digits, whole
    if not (isinstance(tokenizer, BinTokenizer) and tokenizer.stops):
        return tokenizer.encode(actions_BHA), pad_BH
    digits_BHSD = tokenizer.encode(actions_BHA, ended_BH)
    pad_BHS = pad_BH.unsqueeze(-1).repeat(1, 1, digits_BHSD.shape[2])
    pad_BHS[..., -1] &= ~ended_BH
    return digits_BHSD, pad_BHS


@dataclass(frozen=True)
class QueryLoss:
    """What training minimises: the losses of a recipe's queries over a batch."""

    model: LatticeModel
    tokenizers: Tokenizers
    words: Vocabulary
    recipe: Recipe
    trained: tuple[str, ...]

    def __call__(self, rows: Rows, key_B: Tensor, step: int) -> dict[str, Tensor]:
        """ "loss" and its parts, scalars. `key_B`: int64, all randomness. `step`: below 0 in validation, which asks the
        policy about all rows.
        """
        queries = self.recipe.queries
        weights = {name: getattr(queries, name) for name in self.trained}
        if step < queries.policy_warmup_steps and "policy" in weights:
            weights = {"policy": 1.0}
        elif queries.draw and step >= 0:
            weights = drawn(weights, queries.untold, step)
        groups = {n: rows.to(key_B.device) for n, rows in shares(weights, len(key_B), queries.untold).items()}
        context = self.model.read(None, self._seen(rows, key_B, groups, step))
        result: dict[str, Tensor] = {}
        total = torch.zeros((), device=key_B.device)
        if self.model.forecast is not None and rows.waypoints_BKS is not None and step >= 0:
            result["loss_forecast"] = self._forecast(context, rows)
            total = total + self.recipe.forecast * result["loss_forecast"]
        for name, where in groups.items():
            query = without(QUERIES[name], self.model.config.written)
            losses = self.losses(context.pick(where), rows, where, key_B[where], query, step)
            for segment, digits in losses.items():
                weight = 1.0
                if segment is Segment.ACTION:
                    loss = total_loss(digits)
                else:
                    loss, weight = torch.stack(digits).mean(), queries.weight_of(segment)
                if (name, segment) == ("policy", Segment.ACTION):
                    names = ["loss_coarse", "loss_fine", *(f"loss_digit_{d}" for d in range(2, len(digits)))]
                    result |= dict(zip(names, digits, strict=False))
                elif len(groups) > 1:
                    result[f"{segment.name.lower()}/{name}"] = loss
                total = total + weight * loss * (len(where) / len(key_B))
        return {"loss": total, **result}

    def _forecast(self, context: Context, rows: Rows) -> Tensor:
        """Mean absolute error, scaled, of the robot's states to come as the pictures show them."""
        assert rows.waypoints_BKS is not None
        wrong_BKS = (self.model.states_to_come(context).float() - self.tokenizers.state(rows.waypoints_BKS)).abs()
        weight_B = rows.purposeful_B.to(wrong_BKS.dtype)
        count = processes.mean(weight_B.sum()).clamp(min=1 / processes.world())
        return (wrong_BKS.mean((1, 2)) * weight_B).sum() / count

    def _seen(self, rows: Rows, key_B: Tensor, groups: Mapping[str, Tensor], step: int) -> dict[Segment, Given]:
        """What all rows see, each as its query has it. What is withheld now and then must be found elsewhere."""
        told_B = torch.ones(len(key_B), dtype=torch.bool, device=key_B.device)
        drop_B, drop_state_B = torch.zeros_like(told_B), torch.zeros_like(told_B)
        for name, where in groups.items():
            if QUERIES[name].instruction is not Part.GIVEN:
                told_B[where] = False
        if step >= 0:
            drop_B = ~told_B & (randomness.uniform(key_B, "drop images") < self.recipe.drop_images)
            drop_state_B = randomness.uniform(key_B, "drop state") < self.recipe.drop_state
        words_BL = rows.words_BL * told_B.unsqueeze(1)
        observed = replace(rows.observed, sees_images_B=~drop_B, sees_state_B=~(drop_state_B & ~drop_B))
        return {Segment.INSTRUCTION: self.words.tokens(words_BL), Segment.OBSERVATION: observed}

    def losses(
        self, context: Context, rows: Rows, where: Tensor, key_B: Tensor, query: Query, step: int
    ) -> dict[Segment, list[Tensor]]:
        """The loss of each digit of each segment that a query asks. `context`: of its rows, which `where` says."""
        key_B = randomness.fold(key_B, randomness.stream_id(query.name))
        decided: tuple[Segment, ...] = ()
        if query.name == "joint":  # some of it has been decided already, and is read
            decided = query.asked[: step % len(query.asked)]
        context = self._given(context, rows, where, query, decided)
        corrupted: dict[Segment, Corrupted] = {}
        for segment in query.asked:
            if segment not in decided:
                key_S = randomness.fold(key_B, int(segment))
                corrupted[segment] = self._asked(segment, rows, where, key_S, query, step)
        config = self.recipe.corruption
        return denoising_losses(self.model, context, corrupted, key_B, config.p_noisy, self.recipe.noise_candidates)

    def _given(
        self, context: Context, rows: Rows, where: Tensor, query: Query, decided: tuple[Segment, ...]
    ) -> Context:
        """The context with what the query gives."""
        given: dict[Segment, Given] = {}
        for segment in (*query.given, *decided):
            if segment is Segment.GOAL_IMAGE:
                assert rows.pictures is not None
                pictures = rows.pictures["last" if query.name == "label" else "goal"]
                given[segment] = {camera: x[where] for camera, x in pictures.items()}
            elif segment is Segment.PLAN:
                assert rows.plan_BL is not None
                given[segment] = self.words.tokens(rows.plan_BL[where])
            elif segment is Segment.WAYPOINTS:
                given[segment] = Tokens(unmasked(self._waypoints(rows, where)))
            elif segment is Segment.FUTURE_IMAGE:
                given[segment] = Tokens(unmasked(self._codes(rows, "future", where)))
            elif segment is Segment.ACTION:
                digits_BHAD, _ = self._digits(rows.executed_BHA[where], rows, where)
                given[segment] = Tokens(unmasked(self.model.config.layout.fold(digits_BHAD)))
        if Segment.FUTURE_IMAGE in (*query.given, *query.asked):
            given[Segment.PRESENT_IMAGE] = Tokens(unmasked(self._codes(rows, "present", where)))
        return self.model.read(context, given) if given else context

    def _asked(self, segment: Segment, rows: Rows, where: Tensor, key_B: Tensor, query: Query, step: int) -> Corrupted:
        """A segment that is asked, corrupted."""
        happened, device = query.name in WHAT_HAPPENED, key_B.device
        learnable_B = (rows.has_actions_B if happened else rows.has_labels_B)[where]
        if segment is Segment.ACTION:
            return self._asked_actions(rows, where, key_B, query, step, learnable_B)
        head = self.model.head_of(segment)
        if segment in (Segment.INSTRUCTION, Segment.PLAN):
            assert segment is Segment.INSTRUCTION or rows.plan_BL is not None
            ids_BL = rows.words_BL if segment is Segment.INSTRUCTION else rows.plan_BL
            assert ids_BL is not None
            c = corrupt_text(ids_BL[where], key_B, self.words.digits_of, self.words.expand, head.layout.positions)
            if segment is Segment.PLAN:
                assert rows.has_plan_B is not None
                return c.only(rows.has_plan_B[where] & rows.purposeful_B[where])
            return c.only(learnable_B)
        if not happened:  # a video teaches where things go, too
            learnable_B = rows.purposeful_B[where]
        if segment is Segment.FUTURE_IMAGE:
            digits_BNSD = self._codes(rows, "future", where)
        else:
            digits_BNSD = self._waypoints(rows, where)
        nothing = torch.zeros(digits_BNSD.shape[:2], dtype=torch.bool, device=device)
        digits_BHAD, radix_AD = head.layout.unfold(digits_BNSD), head.allowed_ADV.sum(-1)
        return corrupt(digits_BHAD, nothing, key_B, head.layout, CODES, radix_AD).only(learnable_B)

    def _asked_actions(
        self, rows: Rows, where: Tensor, key_B: Tensor, query: Query, step: int, learnable_B: Tensor
    ) -> Corrupted:
        config = self.recipe.corruption
        if 0 <= step < self.recipe.full_steps:
            config = replace(config, p_full_mask=1.0)
        begun: Begun = {Part.PREFIX: "prefix", Part.PARTLY: "any"}.get(query.actions, "")  # type: ignore[assignment]
        executed_BHAD, pad = self._digits(rows.executed_BHA[where], rows, where)
        wanted_BHAD = executed_BHAD
        if query.name not in WHAT_HAPPENED:
            wanted_BHAD = self._digits(rows.labels_BHA[where], rows, where)[0]
        layout, radix_AD = self.model.config.layout, self.model.head_of(Segment.ACTION).allowed_ADV.sum(-1)
        c = corrupt(wanted_BHAD, pad, key_B, layout, config, radix_AD, begun, executed_BHAD)
        return c.only(learnable_B)

    def _digits(self, actions_BHA: Tensor, rows: Rows, where: Tensor) -> tuple[Tensor, Tensor]:
        ended_BH = rows.ended_BH[where]
        return written(self.tokenizers.action, actions_BHA, ended_BH, ended_BH)

    def _codes(self, rows: Rows, which: str, where: Tensor) -> Tensor:
        """int64 (B, N, 1, D): pictures as codes."""
        if which == "present":
            pictures: Mapping[str, Tensor] = {c: x[where, -1] for c, x in rows.observed.images.items()}
        else:
            assert rows.pictures is not None
            pictures = {c: x[where] for c, x in rows.pictures[which].items()}
        return self.tokenizers.codes(pictures).unsqueeze(2)

    def _waypoints(self, rows: Rows, where: Tensor) -> Tensor:
        """int64 (B, K, S, D)."""
        assert rows.waypoints_BKS is not None and self.tokenizers.waypoints is not None
        return self.tokenizers.waypoints.encode(rows.waypoints_BKS[where])
