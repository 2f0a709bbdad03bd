"""`load`: a path or a hub id becomes a LanguageModel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dougong.base import DougongError, read_json
from dougong.hub.download import download, is_hub_id, missing
from dougong.hub.families import family_named
from dougong.hub.formats.llama2c import Header, Llama2cWeights, read_header
from dougong.hub.formats.source import Weights, open_weights
from dougong.hub.keymap import KeyMap, Row, Shape, read, rows
from dougong.hub.language_model import LanguageModel
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Rope

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

# A folder with a SentencePiece model alone gives no tokenizer: that format is not read yet.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
) -> LanguageModel:
    """Open a model.

    path      a folder in Hugging Face layout; a run folder (its `model/` is opened); a llama2.c checkpoint (.bin); or
              an id on the Hugging Face hub, such as "Qwen/Qwen3-0.6B"
    dtype     of the weights; None keeps what the file has (float32 for llama2.c)
    device    where they go; None is the CPU

    The module is built without memory for its weights, which are then copied from the file tensor by tensor: at no
    time are there two copies of the model. Raises DougongError, naming the thing, for a path that does not exist, a
    family or a key that is not known, missing, left over or damaged weights, and a tokenizer larger than the
    vocabulary.
    """
    if quantize is not None:
        raise DougongError(f"quantize={quantize!r}: quantised loading comes with a later version; leave it out")
    kind, where = _dtype(dtype), _device(device)
    name = os.fspath(path)
    place = Path(name).expanduser()
    if not name or not place.exists():
        place = download(name) if is_hub_id(name) else missing(name)
    if place.is_dir():
        named = place / f"{place.name}.bin"  # a folder of llama2.c files, such as stories260K/stories260K.bin
        if (place / "config.json").is_file() or not named.is_file():
            return _load_folder(_model_folder(place), kind, where)
        place = named
    return _load_llama2c(place, kind, where)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise DougongError(f"dtype is {dtype!r}; known: {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if dtype is not None and not dtype.is_floating_point:
        raise DougongError(f"dtype is {dtype}; weights are floating point: {', '.join(DTYPES)}")
    return dtype


def _device(device: torch.device | str | None) -> torch.device:
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError) as error:  # an unknown name; a backend this build of torch lacks
        raise DougongError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _model_folder(folder: Path) -> Path:
    """The folder with config.json: this one, or `model/` in a run folder."""
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    if (folder / "adapter_config.json").is_file():
        raise DougongError(f"{folder} holds an adapter, not a model; load its base model and attach the adapter")
    raise DougongError(f"{folder} has no config.json (nor a model/config.json, as a run folder has)")


def _load_folder(folder: Path, dtype: torch.dtype | None, device: torch.device) -> LanguageModel:
    config = _json_object(folder / "config.json")
    name = config.get("model_type")
    family = family_named(name, str(folder / "config.json"))
    spec = family.from_config(config)
    generation = folder / "generation_config.json"
    defaults = _json_object(generation) if generation.is_file() else {}
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = _tokenizer(folder) if has_tokenizer else None
    lm = LanguageModel(_empty(spec), tokenizer, str(name), config, defaults)
    lm.check_tokenizer()
    with open_weights(folder) as weights:
        spelled = rows(family.keys(spec), _shapes(lm.model), len(spec.layers), str(name))
        _fill(lm.model, family.keys(spec), spelled, weights, str(name), dtype, device)
    return lm


def _json_object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise DougongError(f"{path} holds a {type(data).__name__}; expected a JSON object")
    return data


def _tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    from dougong.tokenizer import Tokenizer

    return Tokenizer.load(path, vocab_size=vocab_size)


def _empty(spec: ModelSpec) -> Model:
    """The module without memory for its weights."""
    with torch.device("meta"):
        return Model(spec)


def _shapes(model: Model) -> dict[str, Shape]:
    return {name: tuple(weight.shape) for name, weight in model.weights().items()}


def _fill(
    model: Model,
    keys: KeyMap,
    spelled: list[Row],
    weights: Weights,
    family: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Give an empty model its weights, each a copy of its own in the type and place asked for."""
    real = {name.replace(".storage.", "."): name for name, _ in model.named_parameters()}

    def put(name: str, tensor: Tensor) -> None:
        parent, _, leaf = real[name].rpartition(".")
        # A copy even where the type stays: the tensor may be a window onto the file, which may change or vanish.
        own = tensor.to(device, dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        setattr(model.get_submodule(parent), leaf, nn.Parameter(own))

    read(keys, spelled, weights, family, put)


def _load_llama2c(path: Path, dtype: torch.dtype | None, device: torch.device) -> LanguageModel:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"GGUF":
        raise DougongError(f"{path}: GGUF files come with a later version; load the folder in Hugging Face layout")
    if path.suffix in (".safetensors", ".json") or start[:2] == b"PK":
        raise DougongError(f"{path} is one file of a model folder; load the folder, {path.parent}")
    header = read_header(path)
    spec = _llama2c_spec(header)
    beside = [path.with_name(name) for name in (f"tok{spec.vocab}.bin", "tokenizer.bin")]
    vocabulary = next((file for file in beside if file.is_file()), None)
    # The file of a vocabulary does not say how many entries it has.
    tokenizer = _tokenizer(vocabulary, spec.vocab) if vocabulary is not None else None
    # Its texts are set apart by token 1, and llama2.c's run.c stops there; 2 is the vocabulary's own end.
    lm = LanguageModel(_empty(spec), tokenizer, "llama", {}, {"bos_token_id": 1, "eos_token_id": [1, 2]})
    lm.check_tokenizer()
    with Llama2cWeights(path, header) as weights:
        spelled = [Row(name, (name,), (shape,), False) for name, shape in _shapes(lm.model).items()]
        names = KeyMap((), prefix="", constants=(), tied=("head.weight", "embedding.weight"))
        _fill(lm.model, names, spelled, weights, "llama2.c", dtype, device)
    return lm


def _llama2c_spec(header: Header) -> ModelSpec:
    """llama2.c's model.py: the Llama form with its first constants."""
    norm, size = Norm("rms", 1e-5), header.head_size
    mixer = Attention(header.heads, header.kv_heads, size, position=Rope(size, 10000.0))
    layers = (LayerSpec(mixer, GatedMLP(header.hidden), norm),) * header.depth
    return ModelSpec(header.vocab, header.width, header.context, layers, norm=norm, head=Head(header.tied))
