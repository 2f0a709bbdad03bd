"""The embedded corpus: the running interpreter's own standard library, real text that is on every machine.

The language reference (`pydoc_data.topics`) and the source of the modules, as documents under the Python Software
Foundation's licence. About 9 million characters on CPython 3.11; nothing is shipped with dougong or downloaded.
"""

from __future__ import annotations

import io
import sys
import sysconfig
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dougong.base import DougongError
from dougong.data.documents import Document, drop_duplicates

LICENCE = "PSF-2.0"

# Folders that hold tests, other people's packages, or tables rather than writing.
SKIPPED_FOLDERS = frozenset(
    (
        *("test", "tests", "idle_test", "testing", "site-packages", "dist-packages", "idlelib", "encodings"),
        *("lib2to3", "pydoc_data", "lib-dynload", "__pycache__", "_bundled", "__phello__"),
    )
)
# Generated tables, and files that the machine's owner may have put there.
SKIPPED_MODULES = frozenset(("html.entities", "stringprep", "sitecustomize", "usercustomize", "__hello__"))
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


def standard_library() -> Iterator[Document]:
    """Yield the embedded corpus, sorted by source name: "python-module:NAME" and "python-topic:NAME".

    Exact duplicates and blank modules are dropped. A library that is zipped, or that carries only part of its source,
    yields what can be read. Raises DougongError when nothing can.
    """
    documents = sorted([*_topics(), *_modules()], key=lambda document: document.source)
    kept = drop_duplicates(documents)
    if not kept:
        raise DougongError(
            f"the standard library of {sys.executable or 'this interpreter'} has no readable source at "
            f"{sysconfig.get_path('stdlib')}; use a full Python installation, or pass your own text"
        )
    yield from kept


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the documentation out
        return
    for name, text in topics.items():
        yield Document(text, f"python-topic:{name}", LICENCE, {"python": _version()})


def _modules() -> Iterator[Document]:
    for path, data in _source_files():
        name = _module_name(path)
        if name is None:
            continue
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError, LookupError):  # a test file in an odd encoding, no text for us
            continue
        if "\0" not in text:
            text = text.replace("\r\n", "\n")
            yield Document(text, f"python-module:{name}", LICENCE, {"python": _version()})


def _source_files() -> Iterator[tuple[PurePosixPath, bytes]]:
    """The library's .py files as (path within the library, content), from its folder or else from its zip archive."""
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for path in sorted(root.rglob("*.py")) if root.is_dir() else ():
        relative = PurePosixPath(path.relative_to(root).as_posix())
        # The name decides before the file is opened: site-packages may be large.
        if _module_name(relative) is None:
            continue
        try:
            data = path.read_bytes()
        except OSError:
            continue
        found = True
        yield relative, data
    if found:
        return
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    for entry in sys.path:
        if Path(entry).name == archive and zipfile.is_zipfile(entry):
            with zipfile.ZipFile(entry) as archived:
                for name in sorted(archived.namelist()):
                    if name.endswith(".py"):
                        yield PurePosixPath(name), archived.read(name)


def _module_name(path: PurePosixPath) -> str | None:
    """The dotted name of a library file, or None where it is not part of the corpus."""
    folders, stem = path.parts[:-1], path.stem
    if any(folder in SKIPPED_FOLDERS or folder.startswith(SKIPPED_PREFIXES) for folder in folders):
        return None
    if stem.startswith(SKIPPED_PREFIXES):
        return None
    name = ".".join(folders if stem == "__init__" and folders else (*folders, stem))
    return None if name in SKIPPED_MODULES else name


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
