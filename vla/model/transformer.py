# SPDX-License-Identifier: Apache-2.0
"""The model: one transformer that reads a prefix once and fills a canvas of masked tokens.

    prefix = model.encode(images, state, words)    # images, robot state, instruction: keys and values, computed once
    h      = model.decode(prefix, canvas_state)    # as often as there are denoising steps
    logits = model.head(h, digits)                 # which digit?
    truth  = model.quality(h)                      # is the digit that is shown the true one?

That is a policy, and all that acting costs. A unified model has further segments (`vla/model/segments.py`): what is
given joins the prefix, `encode(..., given)`; what is asked are blocks, `decode_blocks(prefix, {segment: state})`, each
with a port of its own. Blocks are bidirectional inside and causal between, as `vla.canvas.layout.ATTENDS` says.

The prefix attends to itself only, so the cached keys and values are exact, not an approximation.

Shapes: B batch, P prefix positions, N canvas positions, L words, W width, S state values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.canvas import Layout, Segment, State, attention_mask, revealed
from vla.canvas.layout import ActionArrangement
from vla.model.embedding import CanvasEmbedding, DigitHead, QualityHead
from vla.model.segments import Given, GivenEncoder, Guide, Images, Port
from vla.model.vision import build_vision


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the network. Sizes of data (names, vocabulary) come from the dataset."""

    cameras: tuple[str, ...] = ("front",)
    image_size: int = 64
    """Side of the square input images, px."""
    state_dim: int = 4
    vocabulary: int = 512
    text_length: int = 16
    action_dims: int = 4
    horizon: int = 8
    """Steps of an action chunk."""
    digits: int = 2
    base: int = 16
    arrangement: ActionArrangement = "per_step"
    noise_indices: int = 1
    """How many interchangeable masks there are."""
    width: int = 128
    layers: int = 2
    heads: int = 4
    vision: str = "keypoints"
    """"keypoints" or "timm:<model>"."""
    background: bool = False
    """Whether the vision also sees how a picture differs from the mean one."""
    quality: bool = False
    """Whether there is a head that judges the digits that are shown; revision needs it."""
    word_radices: tuple[int, ...] = ()
    """Values of each digit of a word, for words that are asked for; (): neither instruction nor plan can be."""
    plan_length: int = 0
    """Most words of a plan; 0: there is no plan."""
    code_radices: tuple[int, ...] = ()
    """Values of each digit of an image code; (): no future image can be asked for, and no picture or actions given."""
    codes: int = 0
    """Codes of a picture of one camera."""
    ahead: int = 0
    """Waypoints: moments to come at which the robot's state is read off the summary, as a training aid."""
    guided: bool = False
    """Whether actions can also be asked for with nothing given but the robot's state and its waypoints."""
    layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        layout = Layout(self.horizon, self.action_dims, self.digits, self.base, self.arrangement)
        object.__setattr__(self, "layout", layout)
        for name in ("cameras", "word_radices", "code_radices"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if bool(self.plan_length) > bool(self.word_radices) or bool(self.codes) != bool(self.code_radices):
            raise ValueError("a plan needs word_radices, and codes need code_radices; set both or neither")

    @property
    def ports(self) -> dict[Segment, tuple[int, tuple[int, ...]]]:
        """The segments beside actions that can be asked for: (positions, radices of a token's digits)."""
        ports = {}
        if self.word_radices:
            ports[Segment.INSTRUCTION] = (self.text_length, self.word_radices)
        if self.plan_length:
            ports[Segment.PLAN] = (self.plan_length, self.word_radices)
        if self.codes:
            ports[Segment.FUTURE_IMAGE] = (len(self.cameras) * self.codes, self.code_radices)
        return ports

    @property
    def unified(self) -> bool:
        """Whether it answers more than one question."""
        return bool(self.ports)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the prefix, a pair a layer, each (B, heads, P, W / heads); and who may be looked at."""

    keys: list[Tensor]
    values: list[Tensor]
    visible_BP: Tensor
    """bool: False at padding words."""
    summary_BW: Tensor
    """The prefix in one vector, added to every canvas position."""
    beside: Mapping[Segment, Tensor] = field(default_factory=dict)
    """(B, N, W): what is added to the positions of a block, of those that have it."""
    decided: tuple[Segment, ...] = ()
    """The blocks that have joined it."""

    def repeat(self, times: int) -> "Prefix":
        """Every row `times` times in a row: several corrupted copies of a sample share one prefix."""
        if times == 1:
            return self

        def rows(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, dim=0)

        return self._map(rows)

    def pick(self, rows: Tensor) -> "Prefix":
        """Some of the rows. `rows`: int64 (B',)."""
        return self._map(lambda x: x[rows])

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Prefix":
        keys, values = [f(k) for k in self.keys], [f(v) for v in self.values]
        beside = {segment: f(x) for segment, x in self.beside.items()}
        return Prefix(keys, values, f(self.visible_BP), f(self.summary_BW), beside, self.decided)


class Block(nn.Module):
    """Pre-norm attention and MLP. It attends to (cached keys and values, then its own)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for last in (self.proj, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, x_BNW: Tensor, visible: Tensor | None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`visible`: bool, broadcastable to (B, heads, N, past + N), or None. Returns x and its own (keys, values)."""
        q, k, v = self.qkv(self.norm_1(x_BNW)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        own = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x_BNW = x_BNW + self.proj(_attention(q, k, v, visible).transpose(1, 2).flatten(2))
        return x_BNW + self.down(F.gelu(self.up(self.norm_2(x_BNW)))), own


def _attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    with torch.autocast("cpu", enabled=False):  # the CPU kernel's backward is 6x slower in bfloat16 (measured)
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=visible)


def _present(x_BNW: Tensor, there_BN: Tensor | None) -> Tensor:
    """bool (B, N): all positions, if nothing is said of them."""
    return torch.ones(x_BNW.shape[:2], dtype=torch.bool, device=x_BNW.device) if there_BN is None else there_BN


class LatticeModel(nn.Module):
    """See the module docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.word = nn.Embedding(config.vocabulary, width)
        self.word_place = nn.Parameter(torch.randn(config.text_length, width) * 0.02)
        nn.init.normal_(self.word.weight, std=0.5)
        self.reader = Block(width, config.heads)  # words see words, before they condition the vision
        self.read_norm = nn.LayerNorm(width)  # sentences differ in a word or two: let the vision hear it
        self.vision = nn.ModuleDict(
            {
                camera.replace(".", "_"): build_vision(config.vision, width, config.image_size, config.background)
                for camera in config.cameras
            }
        )
        self.state = nn.Linear(config.state_dim, width)
        tokens = sum(v.tokens for v in self.vision.values()) + 1 + config.text_length
        self.summarise = nn.Sequential(
            nn.Linear((tokens - config.text_length + 1) * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.prefix_place = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.canvas = CanvasEmbedding(config.layout, width, config.noise_indices)
        self.norm = nn.LayerNorm(width)
        self.head = DigitHead(config.layout, width)
        self.quality = QualityHead(config.layout, width) if config.quality else None
        self.ahead = nn.Linear(width, config.ahead * config.state_dim) if config.ahead else None
        self.guide = Guide(config.ahead, config.state_dim, width) if config.guided else None
        if config.unified:
            self.ports = nn.ModuleDict({s.name: Port(*shape, width) for s, shape in config.ports.items()})
            self.given = GivenEncoder(tokens - config.text_length - 1, config.layout, width, config.state_dim)
            self.segment = nn.Parameter(torch.randn(len(Segment), width) * 0.02)
        if config.plan_length:
            self.told = nn.Linear(width, width)  # a plan repeats words of the instruction: a short way for them

    def encode(self, images: Images, state_BS: Tensor, words_BL: Tensor, given: Given | None = None) -> Prefix:
        """uint8 (B, H, W, 3) a camera, float (B, S) in about [-1, 1], int64 (B, L) padded with 0 -> the prefix.

        Words that are all 0: nothing was said. Pictures may also be what `look` made of them, under the same words.
        """
        x_BLW, real_BL, sentence_BW = self._read(words_BL)
        seen_BTW = self._look(images, sentence_BW)
        read = torch.cat([seen_BTW, self.state(state_BS).unsqueeze(1)], dim=1)
        summary_BW = self.summarise(torch.cat([read, sentence_BW.unsqueeze(1)], dim=1).flatten(1))
        x_BPW = torch.cat([read, x_BLW], dim=1) + self.prefix_place
        visible_BP = torch.ones(x_BPW.shape[:2], dtype=torch.bool, device=x_BPW.device)
        visible_BP[:, -words_BL.shape[1] :] = real_BL
        beside: dict[Segment, Tensor] = {}
        if self.config.plan_length:
            beside[Segment.PLAN] = self.told(sentence_BW).unsqueeze(1)
        if given is not None:
            x_BPW, visible_BP, summary_BW = self._join(x_BPW, visible_BP, summary_BW, seen_BTW, sentence_BW, given)
        return self._prefix(x_BPW, visible_BP, summary_BW, beside)

    def _prefix(self, x_BPW: Tensor, visible_BP: Tensor, summary_BW: Tensor, beside: dict[Segment, Tensor]) -> Prefix:
        keys, values = [], []
        for block in self.blocks:
            x_BPW, (k, v) = block(x_BPW, visible_BP[:, None, None, :])
            keys.append(k), values.append(v)
        return Prefix(keys, values, visible_BP, summary_BW, beside)

    def waypoints(self, prefix: Prefix) -> Tensor:
        """Where the robot will be, as the summary tells: float (B, K, S), scaled. ValueError if it was not learnt."""
        if self.ahead is None:
            raise ValueError("this model does not know where the robot will be: train with a recipe with ahead > 0")
        return self.ahead(prefix.summary_BW).unflatten(1, (self.config.ahead, -1))

    def towards(self, state_BS: Tensor, waypoints_BKS: Tensor) -> Prefix:
        """A prefix in which there is nothing but the robot's state and its waypoints, scaled: actions that lead there.

        ValueError if it was not learnt.
        """
        if self.guide is None:
            raise ValueError("this model cannot act on waypoints: train with a recipe with queries.waypoints > 0")
        x_BPW, summary_BW = self.guide(state_BS, waypoints_BKS)
        return self._prefix(x_BPW, _present(x_BPW, None), summary_BW, {})

    def look(self, images: dict[str, Tensor], words_BL: Tensor) -> Tensor:
        """The vision's tokens of all cameras, (B, T, W): for several prefixes with the same pictures and words."""
        return self._look(images, self._read(words_BL)[2])

    def _read(self, words_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words that have seen each other (B, L, W), which of them there are (B, L), and the sentence (B, W)."""
        real_BL = words_BL != 0
        if self.config.unified:
            real_BL[:, 0] = True
        x_BLW = self.word(words_BL) + self.word_place
        x_BLW, _ = self.reader(x_BLW, real_BL[:, None, None, :])
        weight_BL1 = real_BL.unsqueeze(-1).to(x_BLW.dtype)
        return x_BLW, real_BL, self.read_norm((x_BLW * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1))

    def _look(self, images: Images, sentence_BW: Tensor) -> Tensor:
        if isinstance(images, Tensor):
            return images
        seen = [self.vision[c.replace(".", "_")](images[c], sentence_BW) for c in self.config.cameras]
        return torch.cat(seen, dim=1) if seen else sentence_BW.new_zeros(len(sentence_BW), 0, self.config.width)

    def _join(
        self, x: Tensor, visible: Tensor, summary: Tensor, seen_BTW: Tensor, sentence_BW: Tensor, given: Given
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prefix with what is given: its tokens, which of them are there, its summary."""
        joined: list[tuple[Tensor, Tensor | None]] = []
        if given.picture is not None:
            tokens, vector = self.given.picture(seen_BTW, self._look(given.picture, sentence_BW), given.goal)
            joined.append((tokens, None))
            summary = summary + vector
        if given.actions is not None:
            tokens, vector = self.given.actions(self.canvas(given.actions))
            joined.append((tokens, None))
            summary = summary + vector
        if given.plan is not None:
            joined.append((self.ports["PLAN"].embedding(given.plan) + self.segment[Segment.PLAN], given.plan_BL))
        for tokens, there in joined:
            there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device) if there is None else there
            x, visible = torch.cat([x, tokens], dim=1), torch.cat([visible, there], dim=1)
        return x, visible, summary

    def with_codes(self, prefix: Prefix, codes_BND: Tensor) -> Prefix:
        """The prefix, with the picture that is seen now beside the future image that is asked for.

        `codes_BND`: int64 (B, cameras * L, D). Its keys and values stay what they are.
        """
        now_BNW = self._port(Segment.FUTURE_IMAGE).embedding(revealed(codes_BND.unsqueeze(2)))
        return replace(prefix, beside={**prefix.beside, Segment.FUTURE_IMAGE: now_BNW})

    def decode_blocks(
        self, prefix: Prefix, blocks: dict[Segment, State], there: dict[Segment, Tensor] | None = None
    ) -> dict[Segment, Tensor]:
        """One denoising evaluation of several blocks, {segment: float (B, N, W)}.

        `there`: bool (B, N), of a segment whose length differs from row to row: which positions there are.
        """
        order = sorted(blocks)
        if order == [Segment.ACTION] and not prefix.decided:
            return {Segment.ACTION: self.decode(prefix, blocks[Segment.ACTION])}
        parts = [self._written(prefix, segment, blocks[segment]) for segment in order]
        x_BNW, lengths = torch.cat(parts, dim=1), [part.shape[1] for part in parts]
        ids = torch.tensor(order).repeat_interleave(torch.tensor(lengths))
        own_BN = torch.cat([_present(part, (there or {}).get(s)) for s, part in zip(order, parts, strict=True)], dim=1)
        own_BNN = attention_mask(ids).to(x_BNW.device) & own_BN.unsqueeze(1)
        past_BNP = prefix.visible_BP.unsqueeze(1).expand(-1, x_BNW.shape[1], -1)
        visible = torch.cat([past_BNP, own_BNN], dim=2).unsqueeze(1)
        for block, k, v in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x_BNW, _ = block(x_BNW, visible, (k, v))
        return dict(zip(order, self.norm(x_BNW).split(lengths, dim=1), strict=True))

    def append(self, prefix: Prefix, segment: Segment, state: State, there_BN: Tensor | None = None) -> Prefix:
        """The prefix with a block that is decided: what comes after it need not evaluate it again.

        Blocks do not look at later ones, so its keys and values are exact once those before it are decided.
        """
        x_BNW = self._written(prefix, segment, state)
        visible_BP = torch.cat([prefix.visible_BP, _present(x_BNW, there_BN)], dim=1)
        keys, values = [], []
        for block, k, v in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x_BNW, own = block(x_BNW, visible_BP[:, None, None, :], (k, v))
            keys.append(torch.cat([k, own[0]], dim=2)), values.append(torch.cat([v, own[1]], dim=2))
        return replace(prefix, keys=keys, values=values, visible_BP=visible_BP, decided=(*prefix.decided, segment))

    def _written(self, prefix: Prefix, segment: Segment, state: State) -> Tensor:
        """A block's states as the transformer reads them, (B, N, W)."""
        x_BNW = self.embedding_of(segment)(state) + self.segment[segment]
        if segment in prefix.beside:
            x_BNW = x_BNW + prefix.beside[segment]
        return x_BNW + prefix.summary_BW.unsqueeze(1)

    def embedding_of(self, segment: Segment) -> CanvasEmbedding:
        """The embedding of a block's states. ValueError for a segment that this model cannot be asked for."""
        return self.canvas if segment is Segment.ACTION else self._port(segment).embedding

    def head_of(self, segment: Segment) -> DigitHead:
        """The head of a block's digits. ValueError for a segment that this model cannot be asked for."""
        return self.head if segment is Segment.ACTION else self._port(segment).head

    def _port(self, segment: Segment) -> Port:
        if segment not in self.config.ports:
            known = ", ".join(s.name.lower() for s in (*self.config.ports, Segment.ACTION))
            raise ValueError(
                f"this model cannot be asked for {segment.name.lower()}, only for {known}: train one with a recipe "
                "that has queries"
            )
        return self.ports[segment.name]

    def decode(self, prefix: Prefix, state: State) -> Tensor:
        """One denoising evaluation: the canvas attends to the prefix and to itself. Returns float (B, N, W)."""
        x_BNW = self.canvas(state) + prefix.summary_BW.unsqueeze(1)
        own = torch.ones(x_BNW.shape[:2], dtype=torch.bool, device=x_BNW.device)
        visible = torch.cat([prefix.visible_BP, own], dim=1)[:, None, None, :]
        for block, k, v in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x_BNW, _ = block(x_BNW, visible, (k, v))
        return self.norm(x_BNW)

    def forward(
        self,
        images: dict[str, Tensor],
        state_BS: Tensor,
        words_BL: Tensor,
        canvas: State,
        digits_BNSD: Tensor,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Teacher-forced logits, D tensors (B', N, S, V), and quality (B', N, S, D); B' may be a multiple of B."""
        prefix = self.encode(images, state_BS, words_BL).repeat(canvas.known_BNS.shape[0] // words_BL.shape[0])
        h_BNW = self.decode(prefix, canvas)
        return self.head(h_BNW, digits_BNSD), self.quality(h_BNW) if self.quality is not None else None
