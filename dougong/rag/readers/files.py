"""Which files there are to read, and which reader reads which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dougong.base import DougongError
from dougong.data import Document
from dougong.rag.readers.office import read_docx
from dougong.rag.readers.pages import read_html
from dougong.rag.readers.pdf import read_pdf
from dougong.rag.readers.rows import read_rows
from dougong.rag.readers.texts import read_code, read_markdown, read_rst, read_text

LARGEST = 256 << 20
"""Bytes of a file, and of what is packed in one, that are read: more would not fit into memory with all made of it."""
LIBRARY, OWN = "library.sqlite", frozenset({"words", "words.json", "vectors.json", "graph.json"})
"""What tells that a folder keeps a library, and what it keeps beside: no documents, though they lie in the folder."""
Reader = Callable[[bytes, str], list[Document]]

SOURCE_CODE = (
    ".py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .kt .scala .js .jsx .ts .tsx .vue .css .sh .bash .rb .php .pl .lua "
    ".r .jl .swift .m .cs .fs .hs .ml .lisp .clj .ex .erl .sql .yaml .yml .toml .ini .cfg .xml"
)

_SUFFIXES: dict[str, Reader] = {
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **dict.fromkeys((".txt", ".text", ".org", ".adoc", ".tex", ".csv", ".tsv", ".log"), read_text),
    **dict.fromkeys(SOURCE_CODE.split(), read_code),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_rows),
    ".rst": read_rst,
    ".pdf": read_pdf,
    ".docx": read_docx,
}


def find_files(folder: str | Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file of a known kind below `folder`, sorted; hidden files and folders are passed over,
    and what a library keeps of itself.

    The name is the path below the folder, with "/"; odd bytes in it are written as \\xff. A single file is
    its own folder. Raises DougongError for a path that does not exist.
    """
    root = Path(folder)
    if not root.exists():
        raise DougongError(f"{root} does not exist; give a folder of documents")
    if root.is_file():
        yield printable(root.name), root
        return
    paths = sorted(root.rglob("*"))
    libraries = {path.parent for path in paths if path.name == LIBRARY}
    for path in paths:
        inside = path.relative_to(root)
        if path.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        if any(path.relative_to(each).parts[0] in OWN for each in libraries.intersection(path.parents)):
            continue
        # rglob does not follow links to folders; a link to a file may still lead out of the folder or nowhere.
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            yield printable(inside.as_posix()), path


def printable(name: str) -> str:
    """A file's name as text that can be stored and shown: the system hands over odd bytes as lone surrogates."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises DougongError for more than LARGEST bytes, OSError where it cannot be read."""
    with path.open("rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DougongError(f"{path.name} is larger than {LARGEST >> 20} MiB; split it")
    return data


def read_file(name: str, data: bytes) -> list[Document]:
    """The documents in a file with the content `data`, one but for JSON lines; `name` becomes their source.

    Raises DougongError for content that cannot be read, and for a file that holds no words.
    """
    reader = _SUFFIXES.get(Path(name).suffix.lower(), read_text)
    documents = [document for document in reader(data, name) if document.text.strip()]
    if not documents:
        raise DougongError(f"{name} holds no text")
    return documents
