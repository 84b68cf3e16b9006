# SPDX-License-Identifier: Apache-2.0
"""The transformer block of Llama and Qwen: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Parameters have the names and shapes of Llama's and Qwen's checkpoints (`self_attn.q_proj`, `mlp.gate_proj`, ...;
transformers, modeling_llama.py), with `q_norm` and `k_norm` where QK-norm is asked for (Qwen3).

Shapes: B batch, N positions, P positions of the past, G query heads, K key heads, E size of a head, W width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]
"""Keys and values, each (B, K, P, E)."""


def rotation(position_N: Tensor, size: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each float (N, E) (Su et al. 2021). `position_N`: float."""
    frequency_E = base ** (-torch.arange(0, size, 2, device=position_N.device) / size)
    angle_NE = torch.cat([position_N.unsqueeze(-1) * frequency_E] * 2, dim=-1)
    return angle_NE.cos(), angle_NE.sin()


def _rotate(x_BGNE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x_BGNE.chunk(2, dim=-1)
    return x_BGNE * rope[0] + torch.cat([-second, first], dim=-1) * rope[1]


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the precision of its own weights whatever autocast made of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, key_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, key_heads * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)
        nn.init.zeros_(self.o_proj.weight)
        self.q_norm = RMSNorm(self.size) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.size) if qk_norm else nn.Identity()

    def forward(
        self, x_BNW: Tensor, rope: tuple[Tensor, Tensor], visible: Tensor | None, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        split = "b n (h e) -> b h n e"
        q = _rotate(self.q_norm(rearrange(self.q_proj(x_BNW), split, e=self.size)), rope)
        k = _rotate(self.k_norm(rearrange(self.k_proj(x_BNW), split, e=self.size)), rope)
        v = rearrange(self.v_proj(x_BNW), split, e=self.size)
        own = (k, v)
        if past is not None:
            k, v = torch.cat([past[0].to(k.dtype), k], dim=2), torch.cat([past[1].to(v.dtype), v], dim=2)
        return self.o_proj(rearrange(attend(q, k, v, visible), "b h n e -> b n (h e)")), own


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of (B, G, N, E) to (B, K, P, E), K dividing G. `visible`: bool, broadcastable to (B, G, N, P)."""
    if k.shape[1] < q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    with torch.autocast("cpu", enabled=False):  # the CPU kernel's backward is 6x slower in bfloat16 (measured)
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=visible).to(v.dtype)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and MLP. It attends to (cached keys and values, then its own)."""

    def __init__(self, width: int, heads: int, key_heads: int, hidden: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)
        self.self_attn = Attention(width, heads, key_heads, qk_norm)
        self.mlp = MLP(width, hidden)

    def forward(
        self, x_BNW: Tensor, rope: tuple[Tensor, Tensor], visible: Tensor | None = None, past: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """`visible`: bool, broadcastable to (B, G, N, P + N), or None. Returns x and its own (keys, values)."""
        seen_BNW, own = self.self_attn(self.input_layernorm(x_BNW), rope, visible, past)
        x_BNW = x_BNW + seen_BNW
        return x_BNW + self.mlp(self.post_attention_layernorm(x_BNW)), own


class Pool(nn.Module):
    """A few learned queries look at the tokens of a segment: float (B, N, W) -> (B, F), whatever N is.

    At first half of them take the mean of all tokens, and the others look by place alone, each at places of its own, so
    that tokens arrive unmixed; what a token says begins to decide where they look as it is learnt.
    """

    QUERIES = 4
    SHARPNESS = 3.5
    """Of the queries at the start: logits of a standard deviation of 2."""

    def __init__(self, width: int, heads: int, features: int) -> None:
        super().__init__()
        self.heads = heads
        sharpness_Q1 = self.SHARPNESS * (torch.arange(self.QUERIES) % 2).unsqueeze(1)
        self.queries = nn.Parameter(sharpness_Q1 * torch.randn(self.QUERIES, width))
        self.place_norm, self.place_key = RMSNorm(width), nn.Linear(width, width, bias=False)
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.key.weight)
        self.out = nn.Linear(self.QUERIES * width, features, bias=False)

    def forward(self, x_BNW: Tensor, place_NW: Tensor, there_BN: Tensor) -> Tensor:
        """`place_NW`: where the tokens are. `there_BN`: bool. Where no position is there, the result is 0."""
        split = "b n (h e) -> b h n e"
        q = rearrange(self.queries, "q (h e) -> 1 h q e", h=self.heads).expand(len(x_BNW), -1, -1, -1)
        key_BNW = self.key(x_BNW) + self.place_key(self.place_norm(place_NW))
        k, v = rearrange(key_BNW, split, h=self.heads), rearrange(self.value(x_BNW), split, h=self.heads)
        any_B1 = there_BN.any(1, keepdim=True)
        seen = attend(q.to(k.dtype), k, v, (there_BN | ~any_B1)[:, None, None, :])
        return self.out(rearrange(seen, "b h q e -> b (q h e)") * any_B1.to(seen.dtype))
