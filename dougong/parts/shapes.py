"""Shapes in signatures: jaxtyping where it is installed (the tests check every call), plain names elsewhere.

One glossary: B batch, T tokens, S source or key tokens, D width, H query heads, K key-value heads, d head size,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping type: `Float[Tensor, "B T"]` is then just the Tensor."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = _Unchecked

__all__ = ["Bool", "Float", "Int"]
