"""Tensors in large pages: what they hold, and who holds them, whatever the kernel grants."""

from __future__ import annotations

import ctypes
import gc
import itertools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import large_pages
from dougong.base.large_pages import SIZE, enlarge, together

KINDS = [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.int64]
SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=8)


def _some(shape: list[int], kind: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 100, shape).to(kind)


@given(SHAPES, st.randoms())
def test_together_copies_side_by_side(shapes: list[list[int]], draw):
    given = [_some(shape, draw.choice(KINDS)) for shape in shapes]
    made = list(together(list(given)))
    assert len(made) == len(given)
    for before, after in zip(given, made, strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape and torch.equal(after, before)
        assert (after.is_contiguous() and after.data_ptr() % 64 == 0) or not after.numel()
    assert len({each.untyped_storage().data_ptr() for each in made}) <= 1
    spans = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in made if each.nbytes)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_together_lets_go_of_what_it_has_copied():
    given = [torch.ones(1000) for _ in range(4)]
    refs = [weakref.ref(each) for each in given]
    copies = together(given)
    for number in range(4):
        next(copies)
        gc.collect()
        assert [ref() is None for ref in refs[:number]] == [True] * number  # the last copied may be held still
        assert len(given) == 3 - number
    assert list(copies) == []


@pytest.mark.parametrize("count", [1, 3, 700])
def test_enlarging_keeps_values_and_views(count: int):
    whole = torch.randint(0, 256, (5 * SIZE,), dtype=torch.uint8)
    before = whole.clone()
    parts = list(whole.tensor_split(count))
    enlarge(parts)
    enlarge([whole])
    assert torch.equal(whole, before) and parts[0].data_ptr() == whole.data_ptr()
    whole[0] += 1
    assert parts[0][0] == whole[0]


def test_enlarging_what_is_small_or_nothing():
    enlarge([])
    small = [torch.ones(3), torch.empty(0)]
    places = [each.data_ptr() for each in small]
    enlarge(small)
    assert [each.data_ptr() for each in small] == places and bool((small[0] == 1).all())


def test_systems_without_such_pages(monkeypatch: pytest.MonkeyPatch):
    called = []

    class Nothing:
        @property
        def madvise(self):
            called.append("asked")
            raise AttributeError

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nothing())
    monkeypatch.setattr(large_pages.sys, "platform", "linux")
    tensor = torch.arange(SIZE)  # 16 MiB
    enlarge([tensor])
    assert torch.equal(next(together([tensor])), torch.arange(SIZE)) and len(called) == 2
    monkeypatch.setattr(large_pages.sys, "platform", "win32")
    enlarge([tensor])
    assert len(called) == 2
