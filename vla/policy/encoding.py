# SPDX-License-Identifier: Apache-2.0
"""Questions in units to what the model reads: pictures, states, words, and whatever else is given.

Questions of a batch have one shape: the same segments given, and the same ones asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.canvas import Provenance, Segment, State, unmasked
from vla.canvas.query import Part, PartialActions, Query, Question
from vla.diffusion.lengths import Vocabulary
from vla.model import LatticeModel, Observed, Tokens
from vla.model.transformer import Given
from vla.tokenizers import Tokenizers


@dataclass(frozen=True)
class Encoder:
    """Turns questions into tensors on the model's device."""

    model: LatticeModel
    tokenizers: Tokenizers
    device: torch.device

    def vocabulary(self) -> Vocabulary:
        """The words, as tables."""
        return Vocabulary(*(table.to(self.device) for table in self.tokenizers.words.tables))

    def given(self, questions: Sequence[Question], query: Query) -> dict[Segment, Given]:
        """Everything that is read, by segment. ValueError for values of the wrong shape."""
        words, observed = self.vocabulary(), self.observed(questions)
        told = [q.instruction if query.instruction is Part.GIVEN else None for q in questions]
        segments: dict[Segment, Given] = {
            Segment.INSTRUCTION: words.tokens(self.words(told)),
            Segment.OBSERVATION: observed,
        }
        if query.goal_image is Part.GIVEN:
            segments[Segment.GOAL_IMAGE] = self.pictures([q.goal_image or {} for q in questions], "goal_image")
        if query.plan is Part.GIVEN:
            segments[Segment.PLAN] = words.tokens(self.plans([q.plan for q in questions]))
        if query.waypoints is Part.GIVEN:
            segments[Segment.WAYPOINTS] = self._waypoints([q.waypoints for q in questions])
        if query.future_image is not Part.ABSENT:
            present = {camera: x[:, -1] for camera, x in observed.images.items()}
            segments[Segment.PRESENT_IMAGE] = self._codes(present)
        if query.future_image is Part.GIVEN:
            future = self.pictures([q.future_image or {} for q in questions], "future_image")
            segments[Segment.FUTURE_IMAGE] = self._codes(future)
        if query.actions is Part.GIVEN:
            segments[Segment.ACTION] = Tokens(unmasked(self.actions([q.actions for q in questions])))
        return segments

    def known(self, questions: Sequence[Question], query: Query) -> dict[Segment, State]:
        """What is known beforehand of what is asked."""
        if query.actions not in (Part.PREFIX, Part.PARTLY):
            return {}
        return {Segment.ACTION: self._partial([q.actions for q in questions])}

    # --- segments ------------------------------------------------------------------------------------------------
    def observed(self, questions: Sequence[Question]) -> Observed:
        """Pictures, state and executed actions. ValueError for another number of moments, cameras or values."""
        moments = self.model.config.n_obs_steps
        images = self.pictures([q.images for q in questions], moments=moments)
        names = self.tokenizers.state.names
        rows, shape = [np.asarray(q.state, np.float32) for q in questions], (moments, len(names))
        for row in rows:
            if row.shape != shape and (moments > 1 or row.shape != shape[1:]):
                raise ValueError(f"expected states of shape {shape[moments == 1 :]} {names}, got {row.shape}")
        state_BMS = self.tokenizers.state(self._to(np.stack([row.reshape(shape) for row in rows])))
        executed, known = None, None
        if moments > 1:
            executed, known = self._executed([q.executed for q in questions], moments)
        return Observed(images, state_BMS, executed, known)

    def _executed(self, rows: Sequence[np.ndarray | None], moments: int) -> tuple[Tensor, Tensor]:
        """float (B, M - 1, A) scaled, and bool (B, M - 1): which of them there were."""
        shape = (moments - 1, len(self.tokenizers.action.names))
        filled = [np.full(shape, np.nan, np.float32) if row is None else np.asarray(row, np.float32) for row in rows]
        for row in filled:
            if row.shape != shape:
                raise ValueError(
                    f"expected executed actions of shape {shape}, got {row.shape}; NaN where there was none"
                )
        actions_BMA = self._to(np.stack(filled))
        known_BM = torch.isfinite(actions_BMA).all(-1)
        scaled_BMA = self.tokenizers.action.scaled(actions_BMA.nan_to_num(0.0)) * known_BM.unsqueeze(-1)
        return scaled_BMA, known_BM

    def pictures(self, rows: Sequence[Mapping[str, np.ndarray]], what: str = "", moments: int = 0) -> dict[str, Tensor]:
        """{camera: uint8 (B, H, W, 3)}; (B, M, H, W, 3) with `moments`. `what`: names them in errors. ValueError for a
        missing camera and a wrong picture."""
        cameras, size = self.model.config.cameras, self.model.config.image_size
        shape = (size, size, 3) if moments < 2 else (moments, size, size, 3)
        for row in rows:
            if missing := set(cameras) - set(row):
                raise ValueError(f"the checkpoint needs cameras {list(cameras)}; missing {sorted(missing)} {what}")
            for camera in cameras:
                image = row[camera]
                if image.shape not in (shape, (1, *shape) if moments == 1 else shape) or image.dtype != np.uint8:
                    raise ValueError(
                        f"camera '{camera}'{what and ' of ' + what}: expected uint8 {shape}, got "
                        f"{image.dtype} {image.shape}; resize it the way the training data were resized"
                    )
        found = {c: self._to(np.stack([row[c] for row in rows])) for c in cameras}
        return {c: x.view(len(rows), moments, size, size, 3) if moments else x for c, x in found.items()}

    def words(self, sentences: Sequence[Any]) -> Tensor:
        """int64 (B, L): the ids of instructions; all 0 where None says nothing. ValueError for one that is too long."""
        text = self.tokenizers.text
        ids = np.zeros((len(sentences), text.length), dtype=np.int64)
        told = [row for row, sentence in enumerate(sentences) if sentence is not None]
        if told:
            ids[told] = text.encode([sentences[row] for row in told])
        return self._to(ids)

    def plans(self, plans: Sequence[Any]) -> Tensor:
        """int64 (B, L): the ids of plans, texts or ids. ValueError for a plan that is too long."""
        length = self.model.config.plan_length
        ids = np.zeros((len(plans), length), dtype=np.int64)
        for row, plan in enumerate(plans):
            tokens = self.tokenizers.text.ids(plan) if isinstance(plan, str) else plan
            if len(tokens) > length:
                raise ValueError(f"the plan {plan!r} has {len(tokens)} words, there is room for {length}; shorten it")
            ids[row, : len(tokens)] = tokens
        return self._to(ids)

    def actions(self, chunks: Sequence[Any]) -> Tensor:
        """int64 (B, N, S, D): given actions. ValueError for another shape."""
        layout = self.model.config.layout
        self._check_chunks(chunks)
        return layout.fold(self.tokenizers.action.encode(self._to(np.stack(chunks).astype(np.float32))))

    def _check_chunks(self, chunks: Sequence[Any]) -> None:
        names = list(self.tokenizers.action.names)
        shape = (self.tokenizers.action.chunk_steps(self.model.config.layout.horizon), len(names))
        for values in chunks:
            if np.shape(values) != shape:
                raise ValueError(f"expected actions of shape {shape} (steps, {names}), got {np.shape(values)}")

    def _partial(self, parts: Sequence[PartialActions]) -> State:
        """What is known of actions: a state whose known digits are committed."""
        if not self.tokenizers.action.time_aligned:
            raise ValueError(
                f"actions cannot be given partly with the '{self.tokenizers.action.kind}' tokenizer, whose tokens "
                "speak about the whole chunk; train with actions=bins"
            )
        layout = self.model.config.layout
        self._check_chunks([p.values for p in parts])
        known = np.stack([p.levels(layout.digits) for p in parts])
        values = np.where(known > 0, np.stack([p.values for p in parts]), np.array(self.tokenizers.action.low))
        digits_BNSD, known_BHA = self.actions(list(values)), self._to(known)
        if layout.dims > known_BHA.shape[2]:  # STOP is left open
            known_BHA = torch.nn.functional.pad(known_BHA, (0, 1))
        committed = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
        return unmasked(digits_BNSD, layout.fold(known_BHA), layout.fold(committed))

    def _waypoints(self, rows: Sequence[Any]) -> Tokens:
        assert self.tokenizers.waypoints is not None
        shape = (self.model.config.waypoints, len(self.tokenizers.state.names))
        for row in rows:
            if np.shape(row) != shape:
                raise ValueError(
                    f"expected waypoints of shape {shape} (moments to come, {self.tokenizers.state.names}), got "
                    f"{np.shape(row)}"
                )
        return Tokens(unmasked(self.tokenizers.waypoints.encode(self._to(np.stack(rows).astype(np.float32)))))

    def _codes(self, images: Mapping[str, Tensor]) -> Tokens:
        ordered = {camera: images[camera] for camera in self.model.config.cameras}
        return Tokens(unmasked(self.tokenizers.codes(ordered).unsqueeze(2)))

    def _to(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)


def one_shape(questions: Sequence[Question], keys: Sequence[Any]) -> Query:
    """The shape of questions that are asked together. ValueError unless they have one, and a key each."""
    if not questions or len(keys) != len(questions):
        raise ValueError(f"expected one key for each of {len(questions)} questions, at least one, got {len(keys)}")
    queries = [q.query for q in questions]
    if any(q.actions is Part.PARTLY for q in queries):  # the first actions are also some of the actions
        queries = [replace(q, actions=Part.PARTLY) if q.actions is Part.PREFIX else q for q in queries]
    if len({replace(q, name="") for q in queries}) > 1:
        raise ValueError(
            "questions that are asked together must have one shape, got "
            f"{sorted({q.describe() for q in queries})}; ask them one after the other"
        )
    return queries[0]
