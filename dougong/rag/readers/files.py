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
    """(name, path) of every file of a known kind below `folder`, sorted; hidden files and folders are passed over.

    The name is the path below the folder, with "/". A single file is its own folder. Raises DougongError for a path
    that does not exist.
    """
    root = Path(folder)
    if not root.exists():
        raise DougongError(f"{root} does not exist; give a folder of documents")
    if root.is_file():
        yield root.name, root
        return
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        # rglob does not follow links to folders; a link to a file may still lead out of the folder or nowhere.
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            yield inside.as_posix(), path


def read_file(name: str, data: bytes) -> list[Document]:
    """The documents in a file with the content `data`, one but for JSON lines; `name` becomes their source.

    Raises DougongError for content that cannot be read, and for a file that holds no words.
    """
    reader = _SUFFIXES.get(Path(name).suffix.lower(), read_text)
    documents = [document for document in reader(data, name) if document.text.strip()]
    if not documents:
        raise DougongError(f"{name} holds no text")
    return documents
