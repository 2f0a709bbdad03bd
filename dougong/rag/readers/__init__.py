"""Files to documents: Markdown, HTML, text, source code, JSON lines, PDF, Word.

A document's text is exactly its file's where the file is text (line ends kept, so that spans are spans of the file);
of HTML, PDF and Word it is Markdown drawn from them, and `meta["extracted"]` says so.
"""

from dougong.rag.readers.files import find_files, printable, read_bytes, read_file

__all__ = ["find_files", "printable", "read_bytes", "read_file"]
