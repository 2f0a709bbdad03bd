"""`load`: a path or a hub id becomes a LanguageModel."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dougong.base import DougongError, read_json
from dougong.hub.download import download, is_hub_id, missing
from dougong.hub.families import FAMILIES, family_named
from dougong.hub.formats.float8 import Float8, Float8Weights, understand
from dougong.hub.formats.gguf import MAGIC as GGUF
from dougong.hub.formats.gguf import GgufWeights, open_gguf
from dougong.hub.formats.llama2c import Header, Llama2cWeights, read_header
from dougong.hub.formats.rwkv_cpp import MAGIC as RWKV_CPP
from dougong.hub.formats.rwkv_cpp import open_rwkv_cpp
from dougong.hub.formats.source import Weights, open_weights
from dougong.hub.gguf import keys as gguf_keys
from dougong.hub.gguf import read_config
from dougong.hub.gguf_tokenizer import read_ids, read_tokenizer
from dougong.hub.keymap import KeyMap, Row, Shape, as_held, read, rows
from dougong.hub.language_model import LanguageModel
from dougong.hub.one_type import unify
from dougong.hub.predicting import with_found
from dougong.hub.wrapped import TextWeights, text_config
from dougong.model import LayerSpec, Model, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.feedforward import GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

# A folder with a SentencePiece model alone gives no tokenizer: that format is not read yet.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

Settle = Callable[[Model, str], None]


def _leave(model: Model, path: str) -> None:
    """Weights stay as they were read."""


@dataclass(frozen=True)
class _Into:
    """What weights become: their type (None: their own), their place, and what is done with each module's."""

    dtype: torch.dtype | None
    device: torch.device
    settle: Settle


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    settle: Settle | None = None,
) -> LanguageModel:
    """Open a model, its weights as they are; `dougong.load` can quantise them as well.

    path      a folder in Hugging Face layout; a run folder (its `model/` is opened); a GGUF file; a llama2.c or
              rwkv.cpp checkpoint (.bin); or an id on the Hugging Face hub, such as "Qwen/Qwen3-0.6B"
    dtype     of the weights; None keeps what the file has (float32 for llama2.c), but makes matrices of several types
              one (`unify`). Quantised ones are multiplied out: None makes 8-bit floats what config.json says or
              bfloat16, and GGUF's block types float32
    device    where they go; None is the CPU
    settle    called with the model and the path of each module that has got its last weight: it may put the weight in
              another form before the next one is read

    Of a model that wraps a text model (Gemma 3, Qwen3.5 with their vision towers) the text model is opened, and a
    warning says what is left out.

    The module is built without memory for its weights, which are then copied from the file tensor by tensor: at no
    time are there two copies of the model. Raises DougongError, naming the thing, for a path that does not exist, a
    family or a key that is not known, missing, left over or damaged weights, and a tokenizer larger than the
    vocabulary.
    """
    into = _Into(_dtype(dtype), _device(device), settle or _leave)
    name = os.fspath(path)
    place = Path(name).expanduser()
    if not name or not place.exists():
        place = download(name) if is_hub_id(name) else missing(name)
    if place.is_dir():
        only = _only_file(place)
        if only is None:
            return _load_folder(_model_folder(place), into)
        place = only
    return _load_file(place, into)


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


def _only_file(folder: Path) -> Path | None:
    """The checkpoint that is a whole model by itself, in a folder that is not in Hugging Face layout."""
    if (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file():
        return None
    named = folder / f"{folder.name}.bin"  # a folder of llama2.c files, such as stories260K/stories260K.bin
    if named.is_file():
        return named
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1 and not all("-of-" in file.name for file in files):
        raise DougongError(f"{folder} holds {len(files)} GGUF files; give the path of one, such as {files[0]}")
    return files[0] if files else None


def _model_folder(folder: Path) -> Path:
    """The folder with config.json: this one, or `model/` in a run folder."""
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    if (folder / "adapter_config.json").is_file():
        raise DougongError(f"{folder} holds an adapter, not a model; load its base model and attach the adapter")
    raise DougongError(f"{folder} has no config.json (nor a model/config.json, as a run folder has)")


def _load_folder(folder: Path, into: _Into) -> LanguageModel:
    config, where = _json_object(folder / "config.json"), str(folder / "config.json")
    wrapped = config.get("model_type") not in FAMILIES and "text_config" in config
    config = text_config(config, where) if wrapped else config
    name = config.get("model_type")
    family = family_named(name, where)
    layout = _float8_layout(config, f"config.json of {name}")
    spec = family.from_config(config)
    generation = folder / "generation_config.json"
    defaults = _json_object(generation) if generation.is_file() else {}
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    tokenizer = _tokenizer(folder) if has_tokenizer else None
    if wrapped:
        config["architectures"] = family.to_config(spec)["architectures"]
    with open_weights(folder) as opened:
        stored = TextWeights(opened) if wrapped else opened
        spec = with_found(spec, family.keys(spec), stored.shapes)
        lm = LanguageModel(_empty(spec), tokenizer, str(name), config, defaults)
        lm.check_tokenizer()
        weights = stored if layout is None else Float8Weights(stored, layout)
        said = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."))
        if stored.float8:
            into = replace(into, dtype=into.dtype or said or torch.bfloat16)
        keys = as_held(family.keys(spec), stored.shapes)
        _fill(lm.model, keys, rows(keys, _shapes(lm.model), spec.depth, str(name)), weights, str(name), into, lm.unread)
    unify(lm.model, said)
    return lm


def _float8_layout(config: dict[str, Any], where: str) -> Float8 | None:
    """Take the quantization_config out of `config` where it says how 8-bit floats are kept; refuse any other."""
    given = config.get("quantization_config")
    layout = understand(given, where) if given else None
    config.pop("quantization_config", None)
    return layout


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
    into: _Into,
    unread: dict[str, Tensor] | None = None,
) -> None:
    """Give an empty model its weights, each a copy of its own in the type and place asked for; what files hold and
    nothing reads goes to `unread`, as it is."""
    real = {name.replace(".storage.", "."): name for name, _ in model.named_parameters()}
    missing: dict[str, int] = {}  # entries of a stack that have not come yet

    def put(name: str, tensor: Tensor, expert: int | None) -> None:
        parent, _, leaf = real[name].rpartition(".")
        module = model.get_submodule(parent)
        dtype, device = into.dtype, into.device
        if expert is not None:  # one entry of a stack, which is made when its first entry comes
            stack = getattr(module, leaf)
            if stack.is_meta:
                kind = dtype or tensor.dtype
                empty = torch.empty(stack.shape, dtype=kind, device=device)
                stack = nn.Parameter(empty, requires_grad=stack.requires_grad)
                setattr(module, leaf, stack)
            elif dtype is None and (wide := torch.promote_types(stack.dtype, tensor.dtype)) != stack.dtype:
                stack.data = stack.data.to(wide)
            stack.data[expert].copy_(tensor)
            missing[name] = missing.get(name, len(stack)) - 1
            if not missing[name]:
                into.settle(model, parent)
            return
        # A copy even where the type stays: the tensor may be a window onto the file, which may change or vanish.
        own = tensor.to(device, dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        # What gradients do not train (a router's correction) they do not train after loading either.
        setattr(module, leaf, nn.Parameter(own, requires_grad=getattr(module, leaf).requires_grad))
        into.settle(model, parent)

    def spare(name: str, tensor: Tensor) -> None:
        if unread is not None:
            unread[name] = tensor.clone()

    read(keys, spelled, weights, family, put, spare)


def _load_file(path: Path, into: _Into) -> LanguageModel:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == GGUF:
        return _load_gguf(path, into)
    if start == RWKV_CPP:
        return _load_rwkv_cpp(path, into)
    if path.suffix in (".safetensors", ".json") or start[:2] == b"PK":
        raise DougongError(f"{path} is one file of a model folder; load the folder, {path.parent}")
    return _load_llama2c(path, into)


def _load_gguf(path: Path, into: _Into) -> LanguageModel:
    file = open_gguf(path)
    config = read_config(file)
    name = config["model_type"]
    spec = family_named(name, str(path)).from_config(config)
    lm = LanguageModel(_empty(spec), read_tokenizer(file.metadata), name, {}, read_ids(file.metadata))
    lm.check_tokenizer()
    keys = gguf_keys(file, config["head_dim"])
    with GgufWeights(file) as weights:
        spelled = rows(keys, _shapes(lm.model), spec.depth, "GGUF")
        _fill(lm.model, keys, spelled, weights, f"{name} in GGUF", replace(into, dtype=into.dtype or file.dtype))
    return lm


def _load_llama2c(path: Path, into: _Into) -> LanguageModel:
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
        _fill_own(lm.model, weights, "llama2.c", into)
    return lm


def _load_rwkv_cpp(path: Path, into: _Into) -> LanguageModel:
    spec, weights = open_rwkv_cpp(path)
    lm = LanguageModel(_empty(spec), None, "rwkv", {}, {})  # the file has no vocabulary
    with weights:
        _fill_own(lm.model, weights, "rwkv.cpp", into)
    return lm


def _fill_own(model: Model, weights: Weights, form: str, into: _Into) -> None:
    """`_fill` from weights under our own names."""
    spelled = [Row(name, (name,), (shape,), False) for name, shape in _shapes(model).items()]
    names = KeyMap((), prefix="", constants=(), tied=("head.weight", "embedding.weight"))
    _fill(model, names, spelled, weights, form, into)


def _llama2c_spec(header: Header) -> ModelSpec:
    """llama2.c's model.py: the Llama form with its first constants."""
    norm, size = Norm("rms", 1e-5), header.head_size
    mixer = Attention(header.heads, header.kv_heads, size, position=Rope(size, 10000.0))
    layers = (LayerSpec(mixer, GatedMLP(header.hidden), norm),) * header.depth
    return ModelSpec(header.vocab, header.width, header.context, layers, norm=norm, head=Head(header.tied))
