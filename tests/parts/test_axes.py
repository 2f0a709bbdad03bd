"""Rotations with three axes (M-RoPE): sections in order as in Qwen2.5-VL, and what must not depend on them."""

import pytest
import torch
from torch.testing import assert_close

from dougong.base import DougongError
from dougong.parts.context import Context
from dougong.parts.rope import Axes, Rope


@pytest.mark.parametrize("sections", [(2, 3, 3), (8, 0, 0), (1, 1, 6)])
def test_sections_in_order_equal_transformers(sections):
    qwen = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 3, 16), torch.randn(2, 5, 1, 16)  # (B, T, heads, size)
    coordinates = torch.randint(50, (3, 2, 5))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    config = qwen.Qwen2VLTextConfig(hidden_size=48, num_attention_heads=3, rope_parameters=rope)
    cos, sin = qwen.Qwen2VLRotaryEmbedding(config)(q, coordinates)
    want = qwen.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    ctx = Context.of(torch.zeros(2, 5, dtype=torch.int64))
    ctx.coordinates = coordinates
    got = Rope(16, axes=Axes(sections)).rotate(q, k, ctx)
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize("axes", [Axes((2, 3, 3)), Axes((2, 3, 3), interleaved=True)])
def test_text_turns_as_without_axes(axes):
    q, k = torch.randn(2, 5, 3, 16), torch.randn(2, 5, 1, 16)
    ctx = Context.of(torch.zeros(2, 5, dtype=torch.int64))
    plain = Rope(16).rotate(q, k, ctx)
    assert_close(Rope(16, axes=axes).rotate(q, k, ctx), plain)
    ctx.coordinates = ctx.positions.expand(3, 2, 5)
    ctx.memo.clear()
    assert_close(Rope(16, axes=axes).rotate(q, k, ctx), plain)


def test_sections_must_add_up():
    with pytest.raises(DougongError, match=r"\(2, 3, 4\).* 8 turning pairs"):
        Axes((2, 3, 4)).of(8)
