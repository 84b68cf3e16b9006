# SPDX-License-Identifier: Apache-2.0
"""The model: one transformer that reads segments into a context and denoises the masked ones behind it.

    context = model.read(None, {Segment.INSTRUCTION: tokens, Segment.OBSERVATION: observed})
    context = model.read(context, {Segment.PLAN: tokens})      # whatever else is given, or has just been decided
    hidden  = model.decode(context, {Segment.ACTION: state})   # one denoising step, as often as there are
    logits  = model.head_of(Segment.ACTION)(hidden[Segment.ACTION], digits)

There is no other way through the network. `read` appends the keys and values of fully known segments: a segment reads
itself and what stands before it, so they are exact for everything that comes later, and a segment that was decided is
read exactly as one that was given. `decode` reads the context and the masked segments, in their order.

Every segment is also pooled by a few learned queries (`Pool`). The sum of what they found, through a small MLP, is
added to the positions that are asked. It also conditions the vision, with the mean of the words: pictures are looked at
in the light of what was read before them. No layer grows with the number of tokens.

Shapes: B batch, M moments, P positions read so far, N positions of a segment, W width, S state values, F features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla.canvas import Segment, State, block_mask
from vla.model.blocks import Block, Cache, Pool, RMSNorm, rotation
from vla.model.config import ModelConfig
from vla.model.embedding import DigitHead, Places, StateEmbedding, along, on_grid
from vla.model.vision import build_vision


@dataclass(frozen=True)
class Observed:
    """An observation as tensors."""

    images: Mapping[str, Tensor]
    """A camera: uint8 (B, M, H, W, 3), oldest moment first."""
    state_BMS: Tensor
    """float, in about [-1, 1]."""
    executed_BMA: Tensor | None = None
    """float (B, M - 1, A), in about [-1, 1]: the actions between the moments; None: M is 1."""
    known_BM: Tensor | None = None
    """bool (B, M - 1): which of them there are; None: all."""
    sees_images_B: Tensor | None = None
    """bool: where False, there are no pictures; None: everywhere."""
    sees_state_B: Tensor | None = None
    """bool: where False, there is no state and no executed action."""

    def map(self, f: Callable[[Tensor], Tensor]) -> "Observed":
        """The same of other rows: `f` is applied to every tensor."""
        rest = (self.executed_BMA, self.known_BM, self.sees_images_B, self.sees_state_B)
        return Observed(
            {camera: f(x) for camera, x in self.images.items()},
            f(self.state_BMS),
            *(None if x is None else f(x) for x in rest),
        )


@dataclass(frozen=True)
class Tokens:
    """A segment of tokens, and which of its positions there are."""

    state: State
    there_BN: Tensor | None = None
    """bool; None: all."""

    def map(self, f: Callable[[Tensor], Tensor]) -> "Tokens":
        return Tokens(self.state.map(f), None if self.there_BN is None else f(self.there_BN))


Given = Observed | Tokens | Mapping[str, Tensor]
"""What `read` reads: an observation; tokens; of a goal image {camera: uint8 (B, H, W, 3)}."""


@dataclass(frozen=True)
class Context:
    """What has been read."""

    keys: list[Tensor]
    """One a layer, (B, key heads, P, W / heads)."""
    values: list[Tensor]
    visible_BP: Tensor
    """bool: which positions there are."""
    pooled_BF: Tensor
    """What the pooling queries found, added up over segments."""
    said_BW: Tensor
    """The mean of the words that were read."""
    seen_BW: Tensor
    """The mean of the picture tokens of the observation, which `forecast` reads in training."""
    segments: tuple[Segment, ...] = ()

    def map(self, f: Callable[[Tensor], Tensor]) -> "Context":
        keys, values = [f(k) for k in self.keys], [f(v) for v in self.values]
        rest = (f(self.visible_BP), f(self.pooled_BF), f(self.said_BW), f(self.seen_BW))
        return Context(keys, values, *rest, self.segments)

    def repeat(self, times: int) -> "Context":
        """Every row `times` times in a row: several corrupted copies of a sample share one context."""
        return self if times == 1 else self.map(lambda x: x.repeat_interleave(times, dim=0))

    def pick(self, rows: Tensor | slice) -> "Context":
        """Some of the rows. `rows`: int64 (B',), or a slice."""
        return self.map(lambda x: x[rows])


class LatticeModel(nn.Module):
    """See the module docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        hidden = config.mlp_hidden or 32 * round(width * 8 / 3 / 32)
        key_heads = config.key_heads or config.heads
        towers = ["shared"] if config.shared_vision and config.cameras else [_plain(c) for c in config.cameras]
        self.vision = nn.ModuleDict(
            {name: build_vision(config.vision, width, config.image_size, config.background) for name in towers}
        )
        self.state = nn.Linear(config.state_dim, width)
        self.executed = nn.Linear(config.executed_dim, width) if config.n_obs_steps > 1 else None
        self.places = Places(width)
        self.segment = nn.Parameter(torch.randn(len(Segment), width) * 0.02)
        self.embeddings, self.heads = nn.ModuleDict(), nn.ModuleDict()
        for segment, (layout, radices) in config.written.items():
            metric = segment not in TEXTS
            self.embeddings[segment.name] = StateEmbedding(layout, width, config.noise_indices, metric)
            self.heads[segment.name] = head = DigitHead(layout, width)
            if radices is not None:
                head.allowed_ADV.copy_(torch.arange(layout.base) < torch.tensor(radices).view(1, -1, 1))
        self.pools = nn.ModuleDict({s.name: Pool(width, config.heads, 2 * width) for s in config.read})
        self.pool_norm = RMSNorm(2 * width)
        self.summary = nn.Linear(2 * width, width)
        self.condition = nn.Linear(2 * width, width)
        nn.init.zeros_(self.condition.weight)
        self.condition_norm = RMSNorm(width)
        self.forecast = nn.Linear(width, config.forecast * config.state_dim) if config.forecast else None
        self.layers = nn.ModuleList(
            Block(width, config.heads, key_heads, hidden, config.qk_norm) for _ in range(config.layers)
        )
        self.norm = RMSNorm(width)
        self.checkpointing = False
        """Whether training computes a layer's activations again instead of keeping them."""
        for segment in config.written:
            self.register_buffer(f"where_{segment.name}", _places(config, segment), persistent=False)

    # --- reading and denoising -----------------------------------------------------------------------------------
    def read(self, context: Context | None, segments: Mapping[Segment, Given]) -> Context:
        """Append segments that are fully known, in their order. `context`: None, before anything was read.

        ValueError for a segment that this model does not know.
        """
        for segment in sorted(segments):
            context = self._append(context, segment, segments[segment])
        assert context is not None, "nothing to read"
        return context

    def _append(self, context: Context | None, segment: Segment, given: Given) -> Context:
        if segment.name not in self.pools:
            raise ValueError(
                f"this model cannot be given {segment.name.lower()}, only "
                f"{', '.join(s.name.lower() for s in self.config.read)}: train one with a recipe that has such queries"
            )
        content_BNW, place_NW, there_BN = self._tokens(segment, given, context)
        x_BNW = content_BNW + place_NW + self.segment[segment]
        own_BNN = there_BN.unsqueeze(1) | torch.eye(x_BNW.shape[1], dtype=torch.bool, device=x_BNW.device)
        x_BNW, cache = self._through(context, x_BNW, own_BNN)
        found_BF = self.pools[segment.name](self.norm(x_BNW), place_NW, there_BN)
        nothing_BW = torch.zeros_like(x_BNW[:, 0])
        said_BW = mean_of(content_BNW, there_BN) if segment in TEXTS else nothing_BW
        looked_at = self._picture_tokens() if segment is Segment.OBSERVATION else 0
        seen_BW = content_BNW[:, -looked_at:].mean(1) if looked_at else nothing_BW
        if context is None:
            keys, values = [k for k, _ in cache], [v for _, v in cache]
            return Context(keys, values, there_BN, found_BF, said_BW, seen_BW, (segment,))
        return Context(
            [torch.cat([past, k], dim=2) for past, (k, _) in zip(context.keys, cache, strict=True)],
            [torch.cat([past, v], dim=2) for past, (_, v) in zip(context.values, cache, strict=True)],
            torch.cat([context.visible_BP, there_BN], dim=1),
            context.pooled_BF + found_BF,
            context.said_BW + said_BW,
            context.seen_BW + seen_BW,
            (*context.segments, segment),
        )

    def decode(
        self, context: Context, states: Mapping[Segment, State], there: Mapping[Segment, Tensor] | None = None
    ) -> dict[Segment, Tensor]:
        """One denoising step of what is asked, {segment: float (B, N, W)}.

        `there`: bool (B, N), of a segment whose length differs from row to row: which positions there are. ValueError
        for a segment that this model cannot be asked for.
        """
        order = sorted(states)
        summary_B1W = self.summary(F.gelu(self.pool_norm(context.pooled_BF))).unsqueeze(1)
        parts = []
        for segment in order:
            x_BNW, place_NW = self._written(segment, states[segment])
            parts.append(x_BNW + place_NW + self.segment[segment] + summary_B1W)
        lengths = [part.shape[1] for part in parts]
        own_BN = torch.cat([_there(x, (there or {}).get(s)) for s, x in zip(order, parts, strict=True)], dim=1)
        own_BNN = own_BN.unsqueeze(1)
        if len(order) > 1:
            own_BNN = own_BNN & block_mask(lengths).to(own_BN.device)
        rope = torch.cat([torch.arange(n, device=own_BN.device) for n in lengths])
        x_BNW, _ = self._through(context, torch.cat(parts, dim=1), own_BNN, rope)
        return dict(zip(order, self.norm(x_BNW).split(lengths, dim=1), strict=True))

    def _through(
        self, context: Context | None, x_BNW: Tensor, own_BNN: Tensor, position_N: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """All layers. `own_BNN`: which of its own positions each position may read. Returns x, and keys and values."""
        positions = x_BNW.shape[1]
        own_BNN = own_BNN.expand(len(x_BNW), positions, positions)
        if context is not None:
            past_BNP = context.visible_BP.unsqueeze(1).expand(-1, positions, -1)
            own_BNN = torch.cat([past_BNP, own_BNN], dim=2)
        visible = own_BNN.unsqueeze(1)
        position_N = torch.arange(positions, device=x_BNW.device) if position_N is None else position_N
        rope = rotation(position_N.float(), self.config.width // self.config.heads)
        caches = []
        for number, layer in enumerate(self.layers):
            past = None if context is None else (context.keys[number], context.values[number])
            if self.checkpointing and torch.is_grad_enabled():
                x_BNW, own = checkpoint(layer, x_BNW, rope, visible, past, use_reentrant=False)
            else:
                x_BNW, own = layer(x_BNW, rope, visible, past)
            caches.append(own)
        return x_BNW, caches

    # --- embeddings ----------------------------------------------------------------------------------------------
    def _tokens(self, segment: Segment, given: Given, context: Context | None) -> tuple[Tensor, Tensor, Tensor]:
        """A given segment: what its positions say (B, N, W), where they are (N, W), which of them there are (B, N)."""
        if isinstance(given, Tokens):  # whoever gave them, or decided them
            plain = replace(given.state, provenance_BNS=torch.zeros_like(given.state.provenance_BNS))
            x_BNW, place_NW = self._written(segment, plain)
            return x_BNW, place_NW, _there(x_BNW, given.there_BN)
        condition_BW = self.condition.bias.unsqueeze(0)
        if context is not None:
            condition_BW = context.said_BW + self.condition(F.gelu(self.pool_norm(context.pooled_BF)))
        condition_BW = self.condition_norm(condition_BW)
        if isinstance(given, Observed):
            return self._observed(given, condition_BW)
        x_BNW, place_NW = self._pictures({camera: x.unsqueeze(1) for camera, x in given.items()}, condition_BW)
        return x_BNW, place_NW, _there(x_BNW, None)

    def _observed(self, seen: Observed, condition_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moments = self.config.n_obs_steps
        if seen.state_BMS.shape[1] != moments:
            raise ValueError(f"expected observations of {moments} moments, got {seen.state_BMS.shape[1]}")
        time_MC = along(moments).to(seen.state_BMS.device)
        beside_MC = along(2, axis=1)[1].to(time_MC)  # where cameras have their numbers, 0 on
        parts, places = [self.state(seen.state_BMS)], [time_MC - beside_MC]
        there = [_rows(seen.sees_state_B, seen.state_BMS[:, :, 0])]
        if self.executed is not None:
            assert seen.executed_BMA is not None
            parts.append(self.executed(seen.executed_BMA))
            places.append(time_MC[:-1] - 2 * beside_MC)
            there.append(_rows(seen.sees_state_B, seen.executed_BMA[:, :, 0]))
            if seen.known_BM is not None:
                there[-1] = there[-1] & seen.known_BM
        place_NW = self.places(torch.cat(places))
        if self.config.cameras:
            pictures_BNW, where_NW = self._pictures(seen.images, condition_BW)
            parts.append(pictures_BNW)
            place_NW = torch.cat([place_NW, where_NW])
            there.append(_rows(seen.sees_images_B, pictures_BNW[:, :, 0]))
        return torch.cat(parts, dim=1), place_NW, torch.cat(there, dim=1)

    def _pictures(self, images: Mapping[str, Tensor], condition_BW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, M, H, W, 3) of every camera -> float (B, cameras * M * T, W), and where these tokens are."""
        tokens, places = [], []
        for number, camera in enumerate(self.config.cameras):
            eye: Any = self.eye(camera)
            batch, moments = images[camera].shape[:2]
            condition = repeat(condition_BW.expand(batch, -1), "b w -> (b m) w", m=moments)
            tokens.append(rearrange(eye(images[camera].flatten(0, 1), condition), "(b m) t w -> b (m t) w", m=moments))
            at_TC = eye.where_TC + number * along(2, axis=1)[1].to(eye.where_TC)
            places.append((at_TC + along(moments).to(at_TC).unsqueeze(1)).flatten(0, 1))
        return torch.cat(tokens, dim=1), self.places(torch.cat(places))

    def _written(self, segment: Segment, state: State) -> tuple[Tensor, Tensor]:
        """A segment's states, (B, N, W), and where they are, (N, W)."""
        x_BNW = self.embedding_of(segment)(state)
        return x_BNW, self.places(getattr(self, f"where_{_alias(segment).name}"))

    def _picture_tokens(self) -> int:
        """How many tokens of an observation are of its pictures."""
        return self.config.n_obs_steps * sum(len(self.eye(camera).where_TC) for camera in self.config.cameras)

    def states_to_come(self, context: Context) -> Tensor:
        """Where the robot will be, as its pictures show it: float (B, K, S), scaled. A training aid (`forecast`)."""
        assert self.forecast is not None
        return self.forecast(context.seen_BW).unflatten(1, (self.config.forecast, -1))

    def eye(self, camera: str) -> nn.Module:
        """The vision of a camera."""
        return self.vision["shared" if self.config.shared_vision else _plain(camera)]

    def embedding_of(self, segment: Segment) -> StateEmbedding:
        """The embedding of a segment's states. ValueError for a segment that this model cannot be asked for."""
        return self._part(self.embeddings, _alias(segment))

    def head_of(self, segment: Segment) -> DigitHead:
        """The head of a segment's digits. ValueError for a segment that this model cannot be asked for."""
        return self._part(self.heads, segment)

    def _part(self, parts: nn.ModuleDict, segment: Segment) -> nn.Module:
        if segment.name not in parts:
            raise ValueError(
                f"this model cannot be asked for {segment.name.lower()}, only for "
                f"{', '.join(name.lower() for name in parts)}: train one with a recipe that has such queries"
            )
        return parts[segment.name]

    def parameters_by_part(self) -> dict[str, int]:
        """How many parameters each part has."""
        found: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            part = name.split(".")[0]
            found[part] = found.get(part, 0) + parameter.numel()
        return found


TEXTS = (Segment.INSTRUCTION, Segment.PLAN)


def mean_of(x_BNW: Tensor, there_BN: Tensor) -> Tensor:
    """float (B, W): the mean of the positions that are there; 0 where none is."""
    weight_BN1 = there_BN.unsqueeze(-1).to(x_BNW.dtype)
    return (x_BNW * weight_BN1).sum(1) / weight_BN1.sum(1).clamp(min=1)


def _plain(camera: str) -> str:
    """A camera's name without dots, which modules cannot have in theirs."""
    return camera.replace(".", "_")


def _alias(segment: Segment) -> Segment:
    """The present picture is written as the future one is."""
    return Segment.FUTURE_IMAGE if segment is Segment.PRESENT_IMAGE else segment


def _places(config: ModelConfig, segment: Segment) -> Tensor:
    """float (N, 4): where the positions of a segment are."""
    if segment is Segment.FUTURE_IMAGE:
        side = round(config.codes**0.5)
        return on_grid(side, len(config.cameras))
    layout = config.written[segment][0]
    if layout.arrangement == "per_step":
        return along(layout.positions)
    steps = along(layout.horizon).unsqueeze(1) + along(layout.dims, 2)
    return steps.flatten(0, 1)


def _there(x_BNW: Tensor, there_BN: Tensor | None) -> Tensor:
    """bool (B, N): all positions, if nothing is said of them."""
    return torch.ones(x_BNW.shape[:2], dtype=torch.bool, device=x_BNW.device) if there_BN is None else there_BN


def _rows(sees_B: Tensor | None, like_BN: Tensor) -> Tensor:
    """bool (B, N): of the rows that see it, all positions."""
    there_BN = torch.ones(like_BN.shape, dtype=torch.bool, device=like_BN.device)
    return there_BN if sees_B is None else there_BN & sees_B.unsqueeze(1)
