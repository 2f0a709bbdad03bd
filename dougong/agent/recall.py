"""Long-term memory as vectors: texts, and the nearest of them to a query. In memory, or in a file of JSON lines."""

from __future__ import annotations

import json
import math
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from dougong.agent.outside import Remembered
from dougong.base import DougongError, atomic_file, record_from

Embed = Callable[[list[str]], Any]
"""Texts to vectors, an array of (texts, width)."""

WIDTH = 512
_BEGINS = b'{"text": "'
_WORD = re.compile(r"[^\W_]+")


def hashed(texts: list[str]) -> np.ndarray:
    """Bags of words as vectors (texts, WIDTH) of length 1: the hashing trick (Weinberger et al. 2009).

    Each word, and for scripts without spaces each pair of neighbouring characters, adds 1 + ln(its count) or minus that
    at a place that its hash says. No training and no meaning: texts are near that share words.
    """
    vectors = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for term, count in Counter(_terms(text)).items():
            code = zlib.crc32(term.encode("utf-8", "replace"))
            row[code % WIDTH] += (1.0 if code & 0x80000000 else -1.0) * (1.0 + math.log(count))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _terms(text: str) -> list[str]:
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if word.isascii() or len(word) == 1:
            found.append(word)
        else:
            found += [word[start : start + 2] for start in range(len(word) - 1)]
    return found


@final
class Store:
    """Texts with their vectors. embed: how texts become vectors; path: a file where they outlast the process, each
    written when it is added (a line that was torn by a crash is left out). Several threads may use it."""

    def __init__(self, embed: Embed = hashed, path: str | Path | None = None):
        self._embed = embed
        self._path = Path(path) if path is not None else None
        self._lock = threading.Lock()
        self._texts: list[Remembered] = []
        self._vectors: list[np.ndarray] = []
        if self._path is not None and self._path.exists():
            self._load(self._path)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, *remembered: Remembered) -> None:
        """Keep texts; one that is there already is not kept twice."""
        with self._lock:
            known = {each.text for each in self._texts}
            told = [replace(each, text=each.text.encode("utf-8", "replace").decode()) for each in remembered]
            first = {each.text: each for each in reversed(told) if each.text.strip() and each.text not in known}
            new = list(reversed(first.values()))
            self._put(new)
            if self._path is not None and new:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.writelines(map(_line, new))

    def forget(self, *texts: str) -> int:
        """Remove texts, from the file too; how many were there."""
        with self._lock:
            gone = set(texts)
            kept = [place for place, each in enumerate(self._texts) if each.text not in gone]
            count = len(self._texts) - len(kept)
            if count:
                self._texts = [self._texts[place] for place in kept]
                self._vectors = [self._vectors[place] for place in kept]
                if self._path is not None:
                    with atomic_file(self._path) as stream:
                        stream.writelines(_line(each) for each in self._texts)
            return count

    def search(self, query: str, k: int, least: float = 0.05) -> list[Remembered]:
        """The k texts whose vectors point most nearly where the query's does, best first; none whose cosine is below
        `least`."""
        with self._lock:
            if not self._texts or not query.strip():
                return []
            scores = np.stack(self._vectors) @ self._unit([query])[0]
            order = np.argsort(-scores, kind="stable")[:k]
            return [self._texts[index] for index in order if scores[index] >= least]

    def _put(self, new: Sequence[Remembered]) -> None:
        if new:
            self._vectors += list(self._unit([each.text for each in new]))
            self._texts += new

    def _unit(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self._embed(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise DougongError(
                f"embed gave an array of shape {vectors.shape} for {len(texts)} texts; expected a row each"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1.0)

    def _load(self, path: Path) -> None:
        try:
            *lines, last = path.read_bytes().split(b"\n")
        except OSError as error:
            raise DougongError(f"the memory {path} cannot be read: {error.strerror}") from None
        read = [_read(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
        if last:
            try:
                read.append(_read(last, f"{path}:{len(lines) + 1}"))
            except DougongError:
                if not (last.startswith(_BEGINS) or _BEGINS.startswith(last)):
                    raise  # no line of ours that a crash tore: whatever this file is, it stays as it is
            with atomic_file(path) as stream:
                stream.writelines(map(_line, read))
        self._put(read)


def _read(line: bytes, where: str) -> Remembered:
    try:
        return record_from(Remembered, json.loads(line.decode("utf-8")), where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DougongError):
            raise
        raise DougongError(
            f"{where} is no JSON text, so this is no memory; remove the line, or name another file"
        ) from None


def _line(remembered: Remembered) -> str:
    return json.dumps(asdict(remembered), ensure_ascii=False) + "\n"
