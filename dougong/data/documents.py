"""Documents and their split into training and held-out text.

A document never travels without its provenance: where it came from and under which licence. The split is a pure
function of names and texts, so that it is the same on every machine and in every run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from dougong.base import DougongError

Split = Literal["train", "held_out"]

# With fewer documents than this a split by name is too coarse: one novel would be all or nothing.
FEW_DOCUMENTS = 20
# A line shared by more documents than this is boilerplate (a licence header) and says nothing about copying.
BOILERPLATE = 20
# Shorter lines ("return None") occur everywhere, and a few shared lines make no copy.
SHORT_LINE = 20
FEW_LINES = 5


@dataclasses.dataclass(frozen=True)
class Document:
    """One text with its provenance.

    text: the text, newlines as "\\n". source: a name that identifies it ("python-module:json.decoder",
    "corpus/a.txt", "rows.jsonl:12"). licence: an SPDX identifier or "unknown". meta: anything else worth keeping.
    """

    text: str
    source: str
    licence: str = "unknown"
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on `name` alone, the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def split_of(name: str, held_out: float = 0.05) -> Split:
    """The split to which the name `name` belongs: a share `held_out` of all names is held out."""
    return "held_out" if hash_fraction(name) < held_out else "train"


def drop_duplicates(documents: Iterable[Document]) -> list[Document]:
    """The documents whose text (white space at the ends aside) occurred in no earlier one; blank texts are dropped."""
    seen: set[bytes] = set()
    kept = []
    for document in documents:
        text = document.text.strip()
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if text and digest not in seen:
            seen.add(digest)
            kept.append(document)
    return kept


def split_documents(documents: Iterable[Document], held_out: float = 0.05) -> tuple[list[Document], list[Document]]:
    """Split into (training, held-out) documents; both are non-empty, in the order given, without exact duplicates.

    More than 20 documents are split by a hash of their source names. Documents that share half of the lines of the
    shorter one are kept on the same side (the name that sorts first decides), so that copies do not leak into the
    held-out text. With fewer documents, the last `held_out` share of each text is cut off, at the end of a line where
    there is one nearby; the two parts keep the source name and note the cut in `meta["part"]`.

    Raises DougongError when `held_out` is not within (0, 1) or there is too little text to split.
    """
    if not 0 < held_out < 1:
        raise DougongError(f"held_out is {held_out}; expected a share between 0 and 1, such as 0.05")
    documents = drop_duplicates(documents)
    if not documents:
        raise DougongError("there are no documents to split: every text is blank")
    if len(documents) > FEW_DOCUMENTS:
        return _split_by_name(documents, held_out)
    return _split_by_cutting(documents, held_out)


def _split_by_name(documents: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    groups = near_duplicate_groups(documents)
    named = {group: min(documents[i].source for i in members) for group, members in groups.items()}
    fractions = {group: hash_fraction(name) for group, name in named.items()}
    out = {group for group, fraction in fractions.items() if fraction < held_out}
    # Few groups may leave one side empty: the group nearest the border crosses it.
    if not out:
        out = {min(fractions, key=lambda group: fractions[group])}
    if len(out) == len(groups):
        if len(groups) == 1:
            raise DougongError(f"all {len(documents)} documents are copies of one text; there is nothing to hold out")
        out.remove(max(fractions, key=lambda group: fractions[group]))
    held = {i for group in out for i in groups[group]}
    return (
        [document for i, document in enumerate(documents) if i not in held],
        [document for i, document in enumerate(documents) if i in held],
    )


def near_duplicate_groups(documents: Sequence[Document]) -> dict[int, list[int]]:
    """Group the indices of documents that share half of the (long, rare) lines of the shorter one, transitively.

    The key of a group is its first index. Time and memory grow with the number of lines.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    sizes = []
    for i, document in enumerate(documents):
        lines = {hash(line) for raw in document.text.splitlines() if len(line := raw.strip()) >= SHORT_LINE}
        sizes.append(len(lines))
        for line in lines:
            holders[line].append(i)
    shared: Counter[tuple[int, int]] = Counter()
    for members in holders.values():
        if 1 < len(members) <= BOILERPLATE:
            shared.update(combinations(members, 2))

    leader = list(range(len(documents)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for (a, b), count in shared.items():
        if count >= FEW_LINES and 2 * count >= min(sizes[a], sizes[b]):
            first, second = sorted((find(a), find(b)))
            leader[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(documents)):
        groups[find(i)].append(i)
    return dict(groups)


def _split_by_cutting(documents: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    train, held = [], []
    for document in documents:
        cut = _cut(document.text, held_out)
        for part, text, side in (
            ("first", document.text[:cut], train),
            ("last", document.text[cut:], held),
        ):
            if text.strip():
                side.append(dataclasses.replace(document, text=text, meta={**document.meta, "part": part}))
    if not train or not held:
        characters = sum(len(document.text) for document in documents)
        raise DougongError(f"the text has {characters} characters, too few to hold out {held_out:.0%}; give more text")
    return train, held


def _cut(text: str, held_out: float) -> int:
    """Where the last `held_out` share begins: after the nearest line end within a fifth of that share."""
    cut = round(len(text) * (1 - held_out))
    reach = max(1, (len(text) - cut) // 5)
    before = text.rfind("\n", max(0, cut - reach), cut)
    after = text.find("\n", cut, cut + reach)
    nearby = [place + 1 for place in (before, after) if place >= 0 and 0 < place + 1 < len(text)]
    return min(nearby, key=lambda place: abs(place - cut)) if nearby else cut
