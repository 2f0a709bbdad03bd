"""What every format offers: names and shapes at once, tensors one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor

from dougong.base import DougongError, read_json


class Weights(ABC):
    """Named tensors on disk. `shapes` is in the order in which reading is cheapest; `where` names it in errors.

    float8: whether any of them is in 8-bit floats, in which nothing can be computed as it is.
    """

    where: str
    shapes: dict[str, tuple[int, ...]]
    float8: bool = False

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, which may share memory with the file: copy it to keep it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_weights(folder: Path) -> Weights:
    """The weights of a model folder in Hugging Face layout, whichever format they are in.

    Raises DougongError when there are none, or when they are damaged or incomplete.
    """
    from dougong.hub.formats.pickled import PickledWeights
    from dougong.hub.formats.safetensors import SafetensorsWeights

    for kind in (SafetensorsWeights, PickledWeights):
        if (folder / kind.single).exists():
            return kind(folder, {})
        if (folder / kind.index).exists():
            return kind(folder, _shards(folder, kind.index))
    looked = [name for kind in (SafetensorsWeights, PickledWeights) for name in (kind.single, kind.index)]
    parts = sorted(path.name for path in folder.glob("*-of-*") if path.suffix in (".safetensors", ".bin"))
    also = f"; it has {parts[0]} without the index of its parts" if parts else ""
    raise DougongError(f"{folder} has no weights; looked for {', '.join(looked)}{also}")


def _shards(folder: Path, index: str) -> dict[str, str]:
    """Which file of a sharded checkpoint holds each tensor. Raises DougongError when one of them is absent."""
    data = read_json(folder / index)
    places = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(places, dict) or not places:
        raise DougongError(f"{folder / index} has no weight_map; download it again")
    # Only files of this very folder: an index may come from anywhere.
    if odd := [name for name in places.values() if not isinstance(name, str) or name != Path(name).name]:
        raise DougongError(f"{folder / index} places tensors in {odd[0]!r}; expected names of files in the same folder")
    files = sorted(set(places.values()))
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise DougongError(
            f"{folder} lacks {len(absent)} of the {len(files)} files that {index} lists: {', '.join(absent[:4])}; "
            "download them again"
        )
    return places


def misplaced(folder: Path, index: str, places: dict[str, str], absent: list[str]) -> DougongError:
    """The error for tensors that the index places in files which lack them."""
    return DougongError(
        f"{folder}: {index} places {absent[0]} in {places[absent[0]]}, which lacks it ({len(absent)} such tensors); "
        "download the folder again"
    )


def describe_damage(path: Path, detail: object) -> DougongError:
    """The error for a file that cannot be parsed, with the usual causes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(64)
    if size == 0:
        return DougongError(f"{path} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        return DougongError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    return DougongError(f"{path} is damaged or cut short ({size} bytes): {detail}; download it again")
