"""Names that are no local path: hub ids are downloaded, everything else is explained."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import NoReturn

from dougong.base import DougongError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = (".bin", ".gguf", ".safetensors", ".json", ".pt", ".pth")
SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def is_hub_id(name: str) -> bool:
    """Whether a name without a local file can be meant as "model" or "owner/model" on the hub.

    A name whose first part is a local folder is taken for a misspelled path.
    """
    looks = _ID.fullmatch(name) is not None and not name.endswith(_FILES)
    return looks and not ("/" in name and Path(name.split("/")[0]).is_dir())


def missing(name: str) -> NoReturn:
    """Raise the error for a path that does not exist, naming what stands near it."""
    if not name:
        raise DougongError("the path of the model is empty; give a folder, a llama2.c .bin file or a hub id")
    path = Path(name).expanduser()
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    wanted = path.absolute().relative_to(parent).parts[0]
    there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(wanted, there, n=3, cutoff=0.5) or there[:5]
    hint = f"; near it in {parent}: {', '.join(close)}" if close else f"; {parent} is empty"
    raise DougongError(f"{path} does not exist{hint}")


def download(name: str) -> Path:
    """The local copy of a model on the Hugging Face hub, fetched where it is not yet there.

    The hub's client keeps unfinished files apart under other names and continues them at the next call, so an
    interrupted download leaves no half file that could be opened. Raises DougongError when the client is not installed,
    the model does not exist or is closed, or the network fails.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise DougongError(
            f"there is no local folder {name}, and fetching it from the hub needs a package: pip install 'dougong[hub]'"
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*SMALL, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*SMALL, "pytorch_model*.bin"]))
    except GatedRepoError as error:
        raise DougongError(f"{name} is closed: accept its terms on its hub page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise DougongError(f"there is no local folder {name}, and no model of that name on the hub") from error
    except LocalEntryNotFoundError as error:
        raise DougongError(
            f"there is no local folder {name}, no copy of it was downloaded before, and the hub cannot be reached; "
            "check the network or give a local path"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        # Every failure on the way (connection, disk, server) is one of these; what arrived is kept and continued.
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DougongError(f"downloading {name} failed: {detail}; run again to continue") from error
    return folder
