# SPDX-License-Identifier: Apache-2.0
"""The model: one transformer that reads a prefix once and fills a canvas of masked tokens.

    prefix = model.encode(images, state, words)    # images, robot state, instruction: keys and values, computed once
    h      = model.decode(prefix, canvas_state)    # as often as there are denoising steps
    logits = model.head(h, digits)                 # which digit?
    truth  = model.quality(h)                      # is the digit that is shown the true one?

The prefix attends to itself only, so the cached keys and values are exact, not an approximation.

Shapes: B batch, P prefix positions, N canvas positions, L words, W width, S state values.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.canvas import ActionLayout, State
from vla.canvas.layout import ActionArrangement
from vla.model.embedding import CanvasEmbedding, DigitHead, QualityHead
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
    layout: ActionLayout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        layout = ActionLayout(self.horizon, self.action_dims, self.digits, self.base, self.arrangement)
        object.__setattr__(self, "layout", layout)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the prefix, a pair a layer, each (B, heads, P, W / heads); and who may be looked at."""

    keys: list[Tensor]
    values: list[Tensor]
    visible_BP: Tensor
    """bool: False at padding words."""
    summary_BW: Tensor
    """The prefix in one vector, added to every canvas position."""

    def repeat(self, times: int) -> "Prefix":
        """Every row `times` times in a row: several corrupted copies of a sample share one prefix."""
        if times == 1:
            return self

        def rows(x: Tensor) -> Tensor:
            return x.repeat_interleave(times, dim=0)

        keys, values = [rows(k) for k in self.keys], [rows(v) for v in self.values]
        return Prefix(keys, values, rows(self.visible_BP), rows(self.summary_BW))

    def pick(self, rows: Tensor) -> "Prefix":
        """Some of the rows. `rows`: int64 (B',)."""
        keys, values = [k[rows] for k in self.keys], [v[rows] for v in self.values]
        return Prefix(keys, values, self.visible_BP[rows], self.summary_BW[rows])


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

    def encode(self, images: dict[str, Tensor], state_BS: Tensor, words_BL: Tensor) -> Prefix:
        """uint8 (B, H, W, 3) a camera, float (B, S) in about [-1, 1], int64 (B, L) padded with 0 -> the prefix."""
        real_BL = words_BL != 0
        x_BLW = self.word(words_BL) + self.word_place
        x_BLW, _ = self.reader(x_BLW, real_BL[:, None, None, :])
        weight_BL1 = real_BL.unsqueeze(-1).to(x_BLW.dtype)
        sentence_BW = self.read_norm((x_BLW * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1))
        seen = [self.vision[c.replace(".", "_")](images[c], sentence_BW) for c in self.config.cameras]
        read = torch.cat([*seen, self.state(state_BS).unsqueeze(1)], dim=1)
        summary_BW = self.summarise(torch.cat([read, sentence_BW.unsqueeze(1)], dim=1).flatten(1))
        x_BPW = torch.cat([read, x_BLW], dim=1) + self.prefix_place
        visible_BP = torch.ones(x_BPW.shape[:2], dtype=torch.bool, device=x_BPW.device)
        visible_BP[:, -words_BL.shape[1] :] = real_BL
        keys, values = [], []
        for block in self.blocks:
            x_BPW, (k, v) = block(x_BPW, visible_BP[:, None, None, :])
            keys.append(k), values.append(v)
        return Prefix(keys, values, visible_BP, summary_BW)

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
