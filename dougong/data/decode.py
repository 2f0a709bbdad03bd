"""Bytes to text: decompression, the encodings in which text really comes, and errors that say where it is not text."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from dougong.base import DougongError

COMPRESSIONS = (".gz", ".zst")


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed when its name ends in .gz or .zst (needs the `data` extra).

    Raises DougongError when the file cannot be read, is empty, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DougongError(f"{path} cannot be read: {error.strerror or error}") from error
    if data and path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DougongError(f"{path} is not a whole gzip file: {error}; fetch it again") from error
    elif data and path.suffix == ".zst":
        data = _unzstd(path, data)
    if not data:
        raise DougongError(f"{path} is empty; there is nothing to read")
    return data


def _unzstd(path: Path, data: bytes) -> bytes:
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DougongError(f"{path} needs the zstandard package; pip install 'dougong[data]'") from None
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            return stream.read()
    except zstandard.ZstdError as error:
        raise DougongError(f"{path} is not a whole zstd file: {error}; fetch it again") from error


def decode(data: bytes, name: str) -> tuple[str, str]:
    """(text, encoding): UTF-8 with or without a byte-order mark, UTF-16 with one, or GB18030 for Chinese.

    Line ends become "\\n". Raises DougongError that names the first byte offset that is not text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text, encoding = _strict(data, "utf-16", name), "utf-16"
    else:
        zero = data.find(b"\0")
        if zero >= 0:
            raise DougongError(f"{name} is binary, not text: a NUL byte at offset {zero}")
        encoding = "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            chinese = _gb18030(data)
            if chinese is None:
                start = error.start + (len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
                raise DougongError(
                    f"{name} is not UTF-8 text: byte 0x{data[start]:02x} at offset {start}; convert it to UTF-8"
                ) from None
            text, encoding = chinese, "gb18030"
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


def _strict(data: bytes, encoding: str, name: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"{encoding.upper()} text at offset {error.start}"
        raise DougongError(f"{name} is not {where}; convert it to UTF-8") from None
    if "\0" in text:
        raise DougongError(f"{name} is binary, not text: a NUL character at position {text.index(chr(0))}")
    return text


def _gb18030(data: bytes) -> str | None:
    """The text if `data` is Chinese in GB18030, or None.

    GB18030 decodes much that is not Chinese: in Latin-1 an accented letter and the ASCII letter after it look like one
    character. Chinese text is told by both bytes of most characters being above 0x7f.
    """
    try:
        text = data.decode("gb18030")
    except UnicodeDecodeError:
        return None
    foreign = [character for character in text[:100_000] if character > "\x7f"]
    high = sum(min(character.encode("gb18030")) > 0x7F for character in foreign)
    chinese = sum("\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef" for character in foreign)
    return text if 2 * high > len(foreign) and 10 * chinese > 8 * len(foreign) else None
