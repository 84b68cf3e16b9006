# SPDX-License-Identifier: Apache-2.0
"""The block is that of Llama and of Qwen, weight for weight."""

import pytest
import torch

from vla.model.blocks import Block, attend, rotation


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_block_is_the_decoder_layer_of_transformers(name):
    """Names, shapes and numbers: with the same weights, positions 0.. and full attention."""
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
    settings |= {"num_hidden_layers": 1, "rms_norm_eps": 1e-6, "vocab_size": 8, "attn_implementation": "eager"}
    if name == "llama":
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer as Layer
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary

        config = transformers.LlamaConfig(**settings)
    else:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer as Layer
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding as Rotary

        config = transformers.Qwen3Config(head_dim=8, **settings)
    torch.manual_seed(0)
    block = Block(48, 6, 2, 80, qk_norm=name == "qwen3").eval()
    for p in block.parameters():
        p.copy_(torch.randn_like(p) * 0.3)
    theirs = Layer(config, 0).eval()
    theirs.load_state_dict(block.state_dict())  # raises unless every name and shape is theirs
    x_BNW, position_1N = torch.randn(2, 7, 48), torch.arange(7)[None]
    expected = theirs(x_BNW, position_embeddings=Rotary(config)(x_BNW, position_1N))
    expected = expected[0] if isinstance(expected, tuple) else expected
    ours, _ = block(x_BNW, rotation(torch.arange(7.0), 8))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_every_query_head_has_its_group_of_keys():
    q, k, v = (torch.randn(2, heads, 5, 4, generator=torch.Generator().manual_seed(heads)) for heads in (6, 2, 3))
    v = v[:, :2]
    visible = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    visible |= torch.eye(5, dtype=torch.bool)
    found = attend(q, k, v, visible)
    for head in range(6):
        scores = q[:, head] @ k[:, head // 3].mT / 2
        expected = scores.masked_fill(~visible[:, 0], float("-inf")).softmax(-1) @ v[:, head // 3]
        assert torch.allclose(found[:, head], expected, atol=1e-6)
