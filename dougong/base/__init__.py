"""What every floor stands on: errors, typed records, atomic files. Imports nothing heavy."""

from dougong.base.errors import DougongError
from dougong.base.files import atomic_directory, atomic_file, read_json, write_json
from dougong.base.record import nearest, record_from, record_to

__all__ = [
    "DougongError",
    "atomic_directory",
    "atomic_file",
    "nearest",
    "read_json",
    "record_from",
    "record_to",
    "write_json",
]
