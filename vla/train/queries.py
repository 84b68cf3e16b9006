# SPDX-License-Identifier: Apache-2.0
"""Further questions that a demonstration answers, each a training problem: what is given, what is asked.

The policy is always asked about the whole batch (`vla/train/session.objective`). At each step some of its rows are also
asked for plan, future image and actions together, for which the prefix is that of the policy, and others four queries
without an instruction: world model, inverse dynamics, goal and label (`vla/canvas/query.py`). A noise level is drawn
for every segment of every copy, so that one sample has a half-known plan, a masked picture and actions of which a third
are shown. Rows without actions (video) learn pictures and plans only.

Shapes: B rows, H steps, A dimensions, L words, N positions, D digits.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Provenance, Segment, revealed
from vla.canvas.query import Part, Query
from vla.diffusion import Corrupted, Programs, corrupt, digit_losses, quality_loss, total_loss
from vla.diffusion.joint import Vocabulary
from vla.diffusion.lengths import corrupt_text
from vla.diffusion.programs import COPIES
from vla.model import Given, LatticeModel, Prefix
from vla.model.segments import Images
from vla.recipes import Recipe
from vla.tokenizers import ActionTokenizer, BinTokenizer, Tokenizers

CODES = Programs(full=0.5, revise=0, keep_coarse=0.3, only_coarse=0.3, structured=0, wrong=0, prefix=0)
"""Corruption of image codes: single positions, nothing false."""


@dataclass(frozen=True)
class Rows:
    """What is known of some rows of a batch, on the device."""

    images: dict[str, Tensor]
    """A camera: uint8 (B, H, W, 3)."""
    state_BS: Tensor
    """float, scaled."""
    words_BL: Tensor
    """int64, the instruction."""
    actions_BHA: Tensor
    """float, the dataset's units."""
    pad_BH: Tensor
    """bool: past the end of the episode, or unknown."""
    ended_BH: Tensor
    """bool: past the end of the episode."""
    has_actions_B: Tensor
    """bool: whether there are actions; nothing is learnt from those that are not there, given or asked for."""
    plan_BL: Tensor
    """int64, 0 behind the end."""
    has_plan_B: Tensor
    """bool: whether the dataset says what the plan is."""
    future: dict[str, Tensor]
    """A camera: uint8 (B, H, W, 3), at the end of this chunk."""
    goal: dict[str, Tensor]
    """At some later time."""
    future_state_BS: Tensor
    """float, scaled: of the robot in `future`."""
    goal_state_BS: Tensor
    """float, scaled: of the robot in `goal`."""
    seen: Tensor | None = None
    """What the vision made of `images`, where nothing was said; `seen_future` and `seen_goal` likewise."""
    seen_future: Tensor | None = None
    seen_goal: Tensor | None = None


def written(tokenizer: ActionTokenizer, actions_BHA: Tensor, pad_BH: Tensor, ended_BH: Tensor) -> tuple[Tensor, Tensor]:
    """The digits of actions, and what of them is not to be learnt: bool (B, H), or (B, H, S) where there is a STOP.

    STOP is known past the end of an episode too: it says that this is the end.
    """
    if not (isinstance(tokenizer, BinTokenizer) and tokenizer.stops):
        return tokenizer.encode(actions_BHA), pad_BH
    digits_BHSD = tokenizer.encode(actions_BHA, ended_BH.to(actions_BHA.device))
    pad_BHS = pad_BH.unsqueeze(-1).repeat(1, 1, digits_BHSD.shape[2])
    pad_BHS[..., -1] &= ~ended_BH.to(pad_BH.device)
    return digits_BHSD, pad_BHS


@dataclass(frozen=True)
class Asking:
    """Who is asked, and in which words."""

    model: LatticeModel
    tokenizers: Tokenizers
    words: Vocabulary
    recipe: Recipe

    def look(self, rows: Rows) -> Rows:
        """The rows, with what the vision makes of their pictures where nothing was said, for several queries."""
        nothing_BL = torch.zeros_like(rows.words_BL)
        asked = {name for name, weight in self.recipe.queries.weights().items() if weight}
        future = self.model.look(rows.future, nothing_BL) if "inverse" in asked else None
        goal = self.model.look(rows.goal, nothing_BL) if "goal_policy" in asked else None
        return replace(rows, seen=self.model.look(rows.images, nothing_BL), seen_future=future, seen_goal=goal)

    def state_loss(self, rows: Rows) -> Tensor:
        """Mean absolute error of the robot's state as the pictures that were looked at show it, a scalar."""
        looked = (
            (rows.seen, rows.state_BS),
            (rows.seen_future, rows.future_state_BS),
            (rows.seen_goal, rows.goal_state_BS),
        )
        pairs = [(seen, state_BS) for seen, state_BS in looked if seen is not None]
        read_BS = self.model.given.state_seen(torch.cat([seen for seen, _ in pairs]))
        return (read_BS.float() - torch.cat([state_BS for _, state_BS in pairs])).abs().mean()

    def losses(self, rows: Rows, key_B: Tensor, query: Query, prefix: Prefix | None = None) -> dict[str, Tensor]:
        """The loss of one query over `rows`, "loss", and its parts by segment. `key_B`: int64, all randomness.

        `prefix`: of these rows, where the query gives no more than the policy's does.
        """
        key_B = randomness.fold(key_B, randomness.stream_id(query.name))
        model, tokenizers, words, recipe = self.model, self.tokenizers, self.words, self.recipe
        told_BL = rows.words_BL if query.instruction is Part.GIVEN else torch.zeros_like(rows.words_BL)
        digits_BHAD, pad_BHA = written(tokenizers.action, rows.actions_BHA, rows.pad_BH, rows.ended_BH)
        digits_BHAD = digits_BHAD.to(key_B.device)
        if prefix is None:
            images = rows.images if rows.seen is None or query.instruction is Part.GIVEN else rows.seen
            prefix = model.encode(images, rows.state_BS, told_BL, _given(model, rows, digits_BHAD, query))
        if query.future_image is Part.ASKED and Segment.FUTURE_IMAGE in model.config.ports:
            prefix = model.with_codes(prefix, tokenizers.codes(rows.images))
        corrupted: dict[Segment, Corrupted] = {}
        there: dict[Segment, Tensor] = {}
        for segment in query.asked:
            if segment is not Segment.ACTION and segment not in model.config.ports:
                continue  # e.g. a dataset without plans
            key_S = randomness.fold(key_B, int(segment))
            if segment is Segment.ACTION:
                layout, radix_AD = model.config.layout, model.head.allowed_ADV.sum(-1)
                corrupted[segment] = corrupt(digits_BHAD, pad_BHA, key_S, layout, recipe.programs, 1, radix_AD)
            elif segment is Segment.FUTURE_IMAGE:
                codes_BND = tokenizers.codes(rows.future)
                head = model.head_of(segment)
                no_pad = torch.zeros(codes_BND.shape[:2], dtype=torch.bool, device=key_B.device)
                corrupted[segment] = corrupt(
                    codes_BND.unsqueeze(2), no_pad, key_S, head.layout, CODES, 1, head.allowed_ADV.sum(-1)
                )
            else:
                ids_BL = rows.plan_BL if segment is Segment.PLAN else rows.words_BL
                positions = model.config.ports[segment][0]
                corrupted[segment], there[segment] = corrupt_text(
                    ids_BL, key_S, words.digits_of, words.expand, positions
                )
                if segment is Segment.PLAN:
                    corrupted[segment] = _only(corrupted[segment], rows.has_plan_B)
            if query.actions is Part.GIVEN:
                corrupted[segment] = _only(corrupted[segment], rows.has_actions_B)
        h = model.decode_blocks(prefix.repeat(COPIES), {s: c.state for s, c in corrupted.items()}, there)
        result: dict[str, Tensor] = {}
        total = torch.zeros((), device=key_B.device)
        for segment, c in corrupted.items():
            by_digit = digit_losses(model.head_of(segment)(h[segment], c.digits_BNSD), c)
            if segment is Segment.ACTION:
                quality = quality_loss(model.quality(h[segment]), c) if model.quality is not None else 0.0
                loss, weight = total_loss(by_digit, quality), 1.0
            else:
                loss = torch.stack(by_digit).mean()
                weight = recipe.queries.image_weight if segment is Segment.FUTURE_IMAGE else recipe.queries.text_weight
            result[f"loss_{segment.name.lower()}"] = loss
            total = total + weight * loss
        return {"loss": total, **result}


def _only(corrupted: Corrupted, rows_B: Tensor) -> Corrupted:
    """The same, asked of some rows only. `rows_B`: bool, of the batch before it was copied."""
    asked_BNSD = corrupted.asked_BNSD & rows_B.repeat_interleave(COPIES)[:, None, None, None]
    return replace(corrupted, asked_BNSD=asked_BNSD)


def _given(model: LatticeModel, rows: Rows, digits_BHAD: Tensor, query: Query) -> Given:
    """What joins the prefix."""
    goal = query.goal_image is Part.GIVEN
    picture: Images | None = None
    if goal:
        picture = rows.goal if rows.seen_goal is None else rows.seen_goal
    elif query.future_image is Part.GIVEN:
        picture = rows.future if rows.seen_future is None else rows.seen_future
    actions = None
    if query.actions is Part.GIVEN:
        digits_BNSD = model.config.layout.fold(digits_BHAD)
        committed = torch.full(digits_BNSD.shape[:-1], int(Provenance.COMMITTED), device=digits_BNSD.device)
        actions = revealed(digits_BNSD, provenance_BNS=committed)
    return Given(picture, goal, actions)
