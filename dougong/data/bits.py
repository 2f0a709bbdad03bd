"""Bits per byte: the one number by which models with different vocabularies compare."""

from __future__ import annotations

import math

from dougong.base import DougongError


def bits_per_byte(nats: float, count: int) -> float:
    """nats / (count ln 2), where `nats` is the summed cross-entropy of a text and `count` its UTF-8 bytes.

    Sum over every token of the text, the end-of-document tokens included, and divide by the bytes of the text alone: so
    neither the tokenizer nor the length of the rows changes what is measured. Raises DougongError for no bytes.
    """
    if count < 1:
        raise DougongError(f"bits per byte of a text of {count} bytes is not defined; give some text")
    return nats / (count * math.log(2))
