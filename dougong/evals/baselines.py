"""What a language model has to beat: bits per byte of plain statistics and of a general compressor.

All are measured on the same held-out bytes. The byte models are trained on the training text and do not adapt to the
held-out text, as a language model does not.
"""

from __future__ import annotations

import dataclasses
import lzma

import numpy as np

from dougong.base import DougongError
from dougong.evals.bytemodel import ByteModel

# xz is slow; it is primed with this much of the end of the training text.
PRIMED_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One baseline: its name, its bits per byte on the held-out text, and how it was measured."""

    name: str
    bits_per_byte: float
    how: str


def unigram_bits(train: bytes, held_out: bytes) -> float:
    """Bits per byte of the held-out text under the byte frequencies of the training text, one added to each count."""
    counts = np.bincount(np.frombuffer(train, np.uint8), minlength=256) + 1
    bits = np.log2(counts.sum()) - np.log2(counts)
    return float(bits[np.frombuffer(held_out, np.uint8)].mean())


def xz_bits(held_out: bytes, primer: bytes = b"") -> float:
    """Bits per byte that `xz -9` spends on the held-out text, after it has seen `primer` (8 x the growth in size)."""
    size = len(lzma.compress(primer + held_out, preset=9))
    return 8 * (size - (len(lzma.compress(primer, preset=9)) if primer else 0)) / len(held_out)


def baselines(train: bytes, held_out: bytes, *, order: int = 6, sample: int | None = None) -> list[Baseline]:
    """The baselines for text as UTF-8 bytes: unigram, an order-n byte model, xz -9 alone and primed.

    `sample` measures all of them on the first that many bytes of the held-out text, and says so; None on all of it.
    Raises DougongError when either text is empty.
    """
    if not train or not held_out:
        raise DougongError(f"baselines need text: {len(train)} bytes to train on, {len(held_out)} held out")
    part = "all" if sample is None or sample >= len(held_out) else f"the first {sample:,}"
    measured = held_out if sample is None else held_out[:sample]
    where = f"on {part} of {len(held_out):,} held-out bytes"
    primer = train[-PRIMED_BYTES:]
    return [
        Baseline("unigram", unigram_bits(train, measured), f"byte frequencies of the training text, {where}"),
        Baseline(
            f"order-{order} bytes",
            ByteModel.fit(train, order).bits_per_byte(measured),
            f"interpolated Kneser-Ney, {order} bytes of context, trained on {len(train):,} bytes, {where}",
        ),
        Baseline("xz -9", xz_bits(measured), f"the held-out text compressed alone, {where}"),
        Baseline("xz -9 primed", xz_bits(measured, primer), f"after the last {len(primer):,} training bytes, {where}"),
    ]
