"""T5's buckets of distances: those of transformers where it has any, and the last one for all that lies beyond."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.attention import Attention
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.position import Relative


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (32, 20), (8, 20), (4, 3), (6, 64)])
def test_buckets_are_those_of_transformers(buckets: int, reach: int, both_ways: bool) -> None:
    theirs = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention._relative_position_bucket
    distance = torch.arange(-200, 201)
    expected = theirs(-distance, bidirectional=both_ways, num_buckets=buckets, max_distance=reach)
    assert torch.equal(Relative(buckets, reach, both_ways).bucket(distance), expected)


@pytest.mark.parametrize("reach", [1, 7, 8])
def test_a_reach_within_the_single_distances_puts_all_others_in_the_last(reach: int) -> None:
    """transformers divides by the logarithm of 1 there, or of less, and reads outside its table."""
    assert Relative(16, reach).bucket(torch.arange(12)).tolist() == [*range(8), 15, 15, 15, 15]


@torch.no_grad()
def test_a_text_beyond_the_reach_is_read() -> None:
    layer = LayerSpec(Attention(2, 2, 4, position=Relative(8, 4)), MLP(8), Norm())
    model = initialise(Model(ModelSpec(20, 8, 64, (layer,), norm=Norm())), 0)
    assert torch.isfinite(model(torch.arange(20)[None].repeat(1, 2)).logits).all()


@pytest.mark.parametrize(("buckets", "both_ways", "told"), [(1, False, "at least 2"), (3, True, "at least 4")])
def test_too_few_buckets_are_refused(buckets: int, both_ways: bool, told: str) -> None:
    with pytest.raises(DougongError, match=f"{buckets} buckets.*{told}"):
        Relative(buckets, 8, both_ways)
