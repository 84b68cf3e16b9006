# SPDX-License-Identifier: Apache-2.0
"""Observation in, actions with units out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Provenance, Segment, State, hidden, revealed
from vla.canvas.query import ASK, Question
from vla.diffusion.domain import Domain, settle
from vla.diffusion.joint import Turns, one_by_one
from vla.diffusion.limits import Limits, TokenLimits
from vla.diffusion.sampler import Sample, Sampling, Trace, sample
from vla.model import LatticeModel
from vla.policy import asking, labelling, stored
from vla.policy.one_graph import OneGraph
from vla.tokenizers import BinTokenizer, Tokenizers


@dataclass(frozen=True)
class Observation:
    """What the robot sees at one moment."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (H, W, 3), RGB, 0..255, square, the image size of the checkpoint."""
    state: np.ndarray
    """float32 (S,), the dataset's units and order (`Policy.state_names`)."""
    instruction: str
    """What to do, in the language of the dataset."""


@dataclass(frozen=True)
class Chunk:
    """Decided actions of B observations."""

    actions_BHA: np.ndarray
    """float32, the dataset's units (`Policy.action_names`)."""
    confidence_BHA: np.ndarray
    """float32 in [0, 1]: how probable it is that the action is the decided one, up to a coarse bin (a sixteenth of its
    range); of tokens that are not aligned with time, the mean probability of a token."""
    length_B: np.ndarray
    """int64, 0..H: the steps before STOP; H where there is none. What comes behind is not meant to be executed."""

    def sure_steps(self, above: float, least: int = 1) -> np.ndarray:
        """How many steps to execute before the next observation, int64 (B,): until a confidence falls below `above`.

        At least `least`, at most the whole chunk. A step is as sure as its least sure dimension.
        """
        unsure_BH = self.confidence_BHA.min(-1) < above
        first_B = np.where(unsure_BH.any(1), unsure_BH.argmax(1), unsure_BH.shape[1])
        return np.maximum(np.minimum(first_B, self.length_B), least)


STOP = "stop"
Decoding = Literal["actions", "waypoints", "joint", "one_by_one", "thinking"]


class Policy:
    """A checkpoint that acts. `Policy.load(folder)`, then `act(observations, keys)`."""

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
    ) -> None:
        """`n_action_steps`: how many steps of a chunk to execute before the next observation (half of it by default).
        `sure_above`: > 0 executes a chunk for as long as it is that sure of all dimensions, 1 step to all of them.
        `decoding`: of a unified model: the actions alone, which is fast; "waypoints": actions that lead where it says
        that the robot will be; plan, future image and actions together; one segment after the other; or "thinking": the
        actions alone, and a plan first where one of the steps that are to be executed is less sure than `think_below`.
        `rows`: every evaluation has exactly this many rows, padded; then results do not depend on the batch size.
        None: as many rows as observations (lowest latency).
        """
        self.model, self.tokenizers, self.fps, self.seed, self.rows = (
            model.eval(),
            tokenizers,
            fps,
            seed,
            rows,
        )
        self.sampling = sampling or Sampling()
        self.model.head.allowed_ADV.copy_(tokenizers.action.allowed_ADV())
        self.sure_above = sure_above
        self.decoding, self.think_below = decoding, think_below
        self.thoughts = 0
        self.plans: list[str] = []
        """What is still to do, of each observation of the last decision; empty where it was decided without a plan."""
        self._limits: TokenLimits | None = None
        self._graph: OneGraph | None = None
        if decoding not in ("actions", "waypoints") and not model.config.unified:
            raise ValueError(f"this checkpoint knows actions alone, so it cannot decode {decoding}: use 'actions'")
        if decoding == "waypoints" and model.guide is None:
            raise ValueError(
                "this checkpoint does not act on waypoints: train with queries.waypoints > 0, or decode 'actions'"
            )
        self.n_action_steps = n_action_steps or max(1, self.horizon // 2)
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ValueError(f"n_action_steps must be in 1..{self.horizon} (the chunk), got {n_action_steps}")

    # --- what it expects and gives -------------------------------------------------------------------------------
    @property
    def horizon(self) -> int:
        return self.tokenizers.action.chunk_steps(self.model.config.horizon)

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
        return self.model.word.weight.device

    def check_names(self, cache: Any) -> None:
        """ValueError unless a dataset (`FrameCache`) has the actions, states and cameras of the policy."""
        for what, ours, theirs in (
            ("actions", self.action_names, cache.action_names),
            ("states", self.state_names, cache.state_names),
            ("cameras", self.cameras, cache.cameras),
        ):
            if list(ours) != list(theirs):
                raise ValueError(f"expected a dataset with the {what} {list(ours)}, got {list(theirs)}")

    @property
    def compiled(self) -> bool:
        """Whether it decides in one graph (`compile`)."""
        return self._graph is not None

    # --- acting --------------------------------------------------------------------------------------------------
    def compile(self, rows: int = 1, backend: str = "inductor") -> None:
        """Decide actions in one compiled graph from now on (one_graph.py), `rows` observations at a time, padded.

        Compiles at once, which takes a minute on a CPU. Limits, traces and other decodings stay uncompiled. ValueError
        for a sampler that stops early.
        """
        self.rows, self._graph = rows, OneGraph(self.model, self.sampling, backend)
        images = {c: np.zeros((self.image_size, self.image_size, 3), np.uint8) for c in self.cameras}
        nothing = Observation(images, np.zeros(len(self.state_names), np.float32), "go")
        self.act([nothing] * rows, [(0, 0)] * rows)

    def act(self, observations: list[Observation], keys: list[tuple[int, int]]) -> np.ndarray:
        """Decide a chunk for every observation. `keys`: (episode seed, environment step), all its randomness.

        Returns float32 (B, H, A) in the dataset's units.
        """
        return self.decide(observations, keys).actions_BHA

    def decide(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None = None,
        trace: Trace | None = None,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> Chunk:
        """As `act`, with confidence. `committed`: a row, float (d, A): the first d <= H actions, on their way.

        `previous`, `start`: float (B, A), where limits of change and of reach begin (`limit`).
        """
        if len(observations) != len(keys):
            raise ValueError(f"expected one key for each of {len(observations)} observations, got {len(keys)}")
        rows = self.rows or len(observations)
        actions, confidence, lengths = [], [], []
        for start_row in range(0, len(observations), rows):
            end = min(start_row + rows, len(observations))
            part, part_keys = observations[start_row:end], keys[start_row:end]
            given = committed[start_row:end] if committed is not None else None
            filling = rows - len(part)
            result = self._decide_rows(
                part + part[-1:] * filling,
                part_keys + part_keys[-1:] * filling,
                given + given[-1:] * filling if given is not None else None,
                trace,
                *(
                    None if x is None else np.concatenate([x[start_row:end], x[end - 1 : end].repeat(filling, 0)])
                    for x in (previous, start)
                ),
            )
            actions.append(result[0][: len(part)])
            confidence.append(result[1][: len(part)])
            lengths.append(result[2][: len(part)])
        return Chunk(*(torch.cat(parts).cpu().numpy() for parts in (actions, confidence, lengths)))

    @torch.inference_mode()
    def _decide_rows(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None,
        trace: Trace | None,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.plans = []
        if self.decoding in ("actions", "waypoints"):
            return self._decide_actions(observations, keys, committed, trace, previous, start)
        if committed is not None:
            raise ValueError(f"committed actions need decoding='actions', not '{self.decoding}'")
        if self.decoding != "thinking":
            return self._decide_jointly(observations, keys, previous, start)
        quick, confidence, length_B = self._decide_actions(observations, keys, None, trace, previous, start)
        unsure_B = confidence[:, : self.n_action_steps].flatten(1).amin(1) < self.think_below
        if not bool(unsure_B.any()):
            return quick, confidence, length_B
        self.thoughts += int(unsure_B.sum())
        slow, surer, lengths = self._decide_jointly(observations, keys, previous, start)
        unsure_B11 = unsure_B[:, None, None]
        length_B = torch.where(unsure_B, lengths, length_B)
        return torch.where(unsure_B11, slow, quick), torch.where(unsure_B11, surer, confidence), length_B

    def _decide_actions(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[np.ndarray] | None,
        trace: Trace | None,
        previous: np.ndarray | None,
        start: np.ndarray | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fast path: no other segment is evaluated."""
        key_B, inputs = self.randomness(keys), self.inputs(observations)
        given = self._commit(committed, len(observations)) if committed is not None else None
        domain = self.domain(len(observations), previous, start, committed or ())
        graph = self._graph
        plain = self.decoding != "waypoints" and trace is None and domain is None
        if graph is not None and graph.sampling == self.sampling and plain:
            result = graph(*inputs, key_B, given)
        else:
            prefix = self.model.encode(*inputs)
            if self.decoding == "waypoints":
                prefix = self.model.towards(inputs[1], self.model.waypoints(prefix))
            result = sample(self.model, prefix, key_B, self.sampling, given, trace, domain)
        actions_BHA, confidence_BHA, length_B = self.decoded(result)
        if domain is not None and self.sampling.expectation:
            digits_BHAD = self.model.config.layout.unfold(result.state.digits_BNSD)
            actions_BHA = self.settled(digits_BHAD, actions_BHA, domain)
        for row, actions in enumerate(committed or ()):  # on their way already: as they are, not as the nearest bin
            actions_BHA[row, : len(actions)] = torch.as_tensor(np.asarray(actions, np.float32), device=self.device)
        return actions_BHA, confidence_BHA, length_B

    def randomness(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """The keys of a sampler's rows, int64 (B,), of (episode seed, environment step)."""
        return torch.tensor([randomness.fold_numbers(self.seed, *key) for key in keys], device=self.device)

    def decoded(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """What `Chunk` has, of decided tokens: float (B, H, A) in the dataset's units, confidence, int64 (B,)."""
        layout = self.model.config.layout
        digits_BHAD = layout.unfold(sample.state.digits_BNSD)
        offset = layout.unfold(sample.fine_offset_BNS) if self.sampling.expectation else None
        actions_BHA = self.tokenizers.action.decode(digits_BHAD, offset)
        return actions_BHA, self.sureness(sample), self.lengths(digits_BHAD)

    def sureness(self, sample: Sample) -> Tensor:
        """`Chunk.confidence_BHA` of decided tokens."""
        layout, tokenizer = self.model.config.layout, self.tokenizers.action
        if tokenizer.time_aligned and sample.near_BNS is not None:
            return layout.unfold(sample.near_BNS)[..., : tokenizer.dims]
        confidence_BHA = layout.unfold(sample.confidence_BNS)  # a token speaks about all steps: one for all of them
        shape = (len(confidence_BHA), self.horizon, len(tokenizer.names))
        return confidence_BHA.mean((1, 2), keepdim=True).expand(shape)

    def lengths(self, digits_BHSD: Tensor) -> Tensor:
        """int64 (B,): the steps of chunks before STOP."""
        tokenizer = self.tokenizers.action
        if not isinstance(tokenizer, BinTokenizer) or not tokenizer.stops:
            return torch.full((len(digits_BHSD),), self.horizon, device=digits_BHSD.device)
        return (tokenizer.ended(digits_BHSD).long().cumsum(1) == 0).sum(1)

    def domain(
        self,
        batch: int,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
        committed: Sequence[np.ndarray] = (),
    ) -> Domain | None:
        """Which tokens the limits leave to a chunk; None without limits."""
        if self._limits is None:
            return None
        more = self.model.config.layout.dims - len(self.action_names)  # STOP has no limits

        def whole(x: np.ndarray | None) -> np.ndarray | None:
            return None if x is None else np.pad(x, [(0, 0)] * (np.ndim(x) - 1) + [(0, more)])

        known = [np.pad(np.asarray(x), [(0, 0), (0, more)]) for x in committed]
        return self._limits.begin(batch, self.horizon, whole(previous), whole(start), known)

    def settled(self, digits_BHSD: Tensor, wanted_BHA: Tensor, domain: Domain) -> Tensor:
        """From the values of tokens as far towards `wanted_BHA` as the limits allow: float32 (B, H, A)."""
        more = self.model.config.layout.dims - len(self.action_names)
        values_BHA = self.tokenizers.action.decode(digits_BHSD)
        both = (torch.nn.functional.pad(x, (0, more)) for x in (values_BHA, wanted_BHA))
        return settle(*both, domain)[..., : wanted_BHA.shape[-1]]

    def _decide_jointly(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        previous: np.ndarray | None,
        start: np.ndarray | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions by way of a plan, and of the future image (but when thinking), as far as the model has them."""
        names = {"plan": Segment.PLAN}
        if self.decoding != "thinking":
            names["future_image"] = Segment.FUTURE_IMAGE
        also: dict[str, Any] = {name: ASK for name, segment in names.items() if segment in self.model.config.ports}
        questions = [Question(o.images, o.state, o.instruction, actions=ASK, **also) for o in observations]
        asked = questions[0].query.asked
        turns = one_by_one(asked, self.sampling.evaluations) if self.decoding != "joint" else None
        answer = asking.ask(self, questions, keys, None, turns, previous, start)
        found, self.plans = answer.actions, list(answer.plan.values) if answer.plan is not None else []
        assert found is not None
        digits_BHSD = self.model.config.layout.unfold(torch.from_numpy(found.tokens))
        return tuple(  # type: ignore[return-value]
            x.to(self.device)
            for x in (torch.from_numpy(found.values), torch.from_numpy(found.confidence), self.lengths(digits_BHSD))
        )

    def limit(self, limits: Limits | None) -> None:
        """Keep these limits from now on, in every chunk: masks on the logits at every evaluation (limits.py).

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

    def ask(
        self,
        questions: Sequence[Question],
        keys: Sequence[tuple[int, int]],
        evaluations: int | None = None,
        turns: Turns | None = None,
        previous: np.ndarray | None = None,
        start: np.ndarray | None = None,
        temperature: float | None = None,
    ) -> "asking.Answer":
        """Any question to the joint distribution: see `vla.policy.asking.ask`."""
        return asking.ask(self, questions, keys, evaluations, turns, previous, start, temperature)

    def score(self, questions: Sequence[Question]) -> np.ndarray:
        """How likely given actions are, float64 (B,), nats: see `vla.policy.asking.score`."""
        return asking.score(self, questions)

    def label(
        self,
        episodes: Sequence[Sequence[Question]],
        keys: Sequence[tuple[int, int]],
        candidates: int = 8,
        among: Sequence[str] = (),
    ) -> "list[labelling.Label]":
        """Instructions for demonstrations that have none: see `vla.policy.labelling.label`."""
        return labelling.label(self, episodes, keys, candidates, among)

    def inputs(
        self, observations: Sequence[Observation], told: bool = True
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What `LatticeModel.encode` reads. `told`: False leaves the instruction out. ValueError: a wrong picture."""
        images = self.pictures([o.images for o in observations])
        state_BS = torch.from_numpy(np.stack([np.asarray(o.state, np.float32) for o in observations])).to(self.device)
        if told:
            words = self.tokenizers.text.encode([o.instruction for o in observations])
        else:
            words = np.zeros((len(observations), self.tokenizers.text.length), dtype=np.int64)
        return images, self.tokenizers.state(state_BS), torch.from_numpy(words).to(self.device)

    def pictures(self, rows: Sequence[dict[str, np.ndarray]], what: str = "") -> dict[str, Tensor]:
        """{camera: uint8 (B, H, W, 3)} on the device. `what`: names them in errors. ValueError for a wrong picture."""
        size = self.image_size
        for row in rows:
            if missing := set(self.cameras) - set(row):
                raise ValueError(f"the checkpoint needs cameras {list(self.cameras)}; missing {sorted(missing)} {what}")
            for camera in self.cameras:
                image = row[camera]
                if image.shape != (size, size, 3) or image.dtype != np.uint8:
                    raise ValueError(
                        f"camera '{camera}'{what and ' of ' + what}: expected uint8 ({size}, {size}, 3), got "
                        f"{image.dtype} {image.shape}; resize it the way the training data were resized"
                    )
        return {c: torch.from_numpy(np.stack([row[c] for row in rows])).to(self.device) for c in self.cameras}

    def _commit(self, committed: list[np.ndarray], batch: int) -> State:
        """Committed actions as given tokens: real-time chunking is in-painting."""
        if not self.tokenizers.action.time_aligned:
            raise ValueError(
                f"actions cannot be committed with the '{self.tokenizers.action.kind}' tokenizer, whose tokens speak "
                "about the whole chunk; train with actions=bins for real-time chunking"
            )
        layout = self.model.config.layout
        empty = hidden((batch, layout.positions, layout.sub_tokens), layout.digits, self.device)
        digits_BHAD = layout.unfold(empty.digits_BNSD).clone()
        known_BHA = layout.unfold(empty.known_BNS).clone()
        for row, actions in enumerate(committed):
            steps = len(actions)
            if steps > self.horizon:
                raise ValueError(f"at most {self.horizon} committed steps fit into a chunk, got {steps}")
            if steps:
                digits_BHAD[row, :steps] = self.tokenizers.action.encode(
                    torch.as_tensor(np.asarray(actions, np.float32), device=self.device)
                )
                known_BHA[row, :steps] = layout.digits
        provenance_BHA = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
        return revealed(layout.fold(digits_BHAD), layout.fold(known_BHA), layout.fold(provenance_BHA))

    # --- checkpoints ---------------------------------------------------------------------------------------------
    def write(self, folder: Path, extra: dict | None = None) -> None:
        """Write the policy's files into `folder` (within `checkpoint.write_folder`)."""
        stored.write(self, folder, extra)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        evaluations: int | None = None,
        n_action_steps: int | None = None,
        seed: int = 0,
        rows: int | None = None,
        sure_above: float = 0.0,
        decoding: Decoding = "actions",
        think_below: float = 0.2,
    ) -> "Policy":
        """Load a checkpoint: a folder, or a name of a shipped one ("tabletop_nano").

        Raises ValueError when it is missing, damaged or of another version.
        """
        found = stored.read(path)
        sampling = found.sampling if evaluations is None else replace(found.sampling, evaluations=evaluations)
        steps = n_action_steps or found.n_action_steps
        model = found.model.to(device)
        return cls(model, found.tokenizers, found.fps, sampling, steps, seed, rows, sure_above, decoding, think_below)
