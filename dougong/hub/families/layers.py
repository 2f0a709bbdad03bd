"""What layers of decoders have in common, and how a config.json says which layers are of which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dougong.hub.families.fields import (
    Entry,
    Given,
    Key,
    Keys,
    Parts,
    activation,
    change,
    flag,
    integer,
    number,
    put,
    share,
)
from dougong.hub.families.reader import Reader
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import MLP, GatedMLP

GATED, PLAIN = {"mixer": Attention, "ffn": GatedMLP}, {"mixer": Attention, "ffn": MLP}
"""The kinds of most families' layers."""
KINDS = FULL, LOCAL = ("full_attention", "sliding_attention")
LINEAR = "linear_attention"


def outer(
    vocab: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    context: int | Entry | None = None,
    eps: float | None = 1e-6,
    tied: bool = False,
    eps_key: str = "rms_norm_eps",
) -> tuple[Entry, ...]:
    """The usual keys of what is around the layers. The numbers are the family's for keys that the config leaves out
    (None: they must be there, and eps has no key); eps_key: its name for the epsilon of norms."""
    limit = integer("max_position_embeddings", "model.context", context) if isinstance(context, int | None) else context
    return (
        integer("vocab_size", "model.vocab", vocab),
        integer("hidden_size", "model.width", width),
        limit,
        integer("num_hidden_layers", "layers.depth", depth),
        *([] if eps is None else [number(eps_key, "norm.eps", eps)]),
        flag("tie_word_embeddings", "head.tied", tied),
    )


def decoder(
    context: int | None = None,
    kv_heads: int | None = None,
    head_size: int | None = None,
    *,
    ffn: str = "ffn.hidden",
    act: Entry | None = None,
    eps: float | None = 1e-6,
    tied: bool = False,
    mixer: str = "mixer",
) -> tuple[Entry, ...]:
    """The usual keys of decoders.

    context, kv_heads, head_size, eps, tied: the family's defaults for keys that the config leaves out (None: as many as
    heads, width / heads). ffn: places of "intermediate_size"; act: the key of their activation.
    """

    return (
        *outer(context=context, eps=eps, tied=tied),
        heads(f"{mixer}.heads"),
        key_heads(mixer, kv_heads),
        integer("head_dim", f"{mixer}.head_size", head_size or quotient(mixer)),
        share("attention_dropout", f"{mixer}.dropout"),
        integer("intermediate_size", ffn),
        act or activation("hidden_act", ffn.replace(".hidden", ".activation"), "silu"),
    )


def heads(places: str, usual: int | None = None) -> Key:
    """No more of them than the width."""

    def ask(config: Reader, key: str, usual: int | None) -> int:
        count, width = config.integer(key, usual), config.integer("hidden_size")
        if count > width:
            raise config.wrong(key, count, f"1 to hidden_size, {width}")
        return count

    return Key("num_attention_heads", places, ask, usual)


def key_heads(mixer: str, usual: int | None) -> Key:
    """transformers: a missing key takes the family's default (None: one for each head), null means one for each."""

    def ask(config: Reader, key: str, heads: int) -> int:
        return (usual or heads) if config.raw(key, 0) == 0 else config.integer(key, heads)

    return Key("num_key_value_heads", f"{mixer}.kv_heads", ask, lambda given: given[mixer]["heads"])


def quotient(mixer: str) -> Callable[[Given], int]:
    """The width over the heads."""
    return lambda given: given["model"]["width"] // given[mixer]["heads"]


def bias(name: str = "attention_bias", usual: bool = False, mixer: str = "mixer") -> Key:
    return flag(name, f"{mixer}.bias {mixer}.out_bias", usual)


def whole_heads(key: str, mixer: str = "mixer") -> Keys:
    """The heads, told by `key`, divide the width."""

    def ask(config: Reader, given: Given) -> None:
        put(given, f"{mixer}.head_size", config.head_size(given["model"]["width"], key, given[mixer]["heads"]))

    return Keys(ask)


def pattern(name: str, slot: str, kinds: Mapping[str, str], usual: Callable[[Reader, Given], Sequence[str]]) -> Keys:
    """A key that gives the kind of each layer's mixer (slot "mixers") or feed-forward ("ffns").

    kinds: what the config calls them and what the table does; usual: where the config does not say.
    """
    own = {each: foreign for foreign, each in kinds.items()}

    def ask(config: Reader, given: Given) -> None:
        found = config.kinds(name, tuple(kinds), [own[each] for each in usual(config, given)])
        given["layers"][slot] = [kinds[each] for each in found]

    def tell(parts: Parts) -> dict[str, Any]:
        kinds = (parts.kind_of(getattr(layer, slot[:-1]), own) for layer in parts.spec.layers)
        return {name: [own[kind] for kind in kinds if kind]}

    return Keys(ask, tell)


def every(
    key: str, usual: int, others: str, those: str, rest: int | None = None
) -> Callable[[Reader, Given], list[str]]:
    """For `pattern`: layers are of kind `those` where their number, from 0, leaves `rest` (None: the most) when divided
    by `key`."""

    def kinds(config: Reader, given: Given) -> list[str]:
        step = config.integer(key, usual)
        last = step - 1 if rest is None else rest
        return [those if index % step == last else others for index in range(given["layers"]["depth"])]

    return kinds


def windows_of(spec: ModelSpec) -> list[int | None]:
    return [layer.mixer.window if isinstance(layer.mixer, Attention) else None for layer in spec.layers]


def write_layer_types(spec: ModelSpec) -> dict[str, Any]:
    return {"layer_types": [KINDS[window is not None] for window in windows_of(spec)]}


def local_layers(size: int | None, full: Callable[[Reader, int], bool]) -> Keys:
    """Windows where `layer_types` says which layers have one; without it, those for whose number `full` is false.

    size: the window of a config that gives none.
    """

    def ask(config: Reader, given: Given) -> None:
        put_windows(config, given, config.window(default=size), lambda index: full(config, index))

    def tell(parts: Parts) -> dict[str, Any]:
        return {"sliding_window": next(filter(None, windows_of(parts.spec)), size), **write_layer_types(parts.spec)}

    return Keys(ask, tell)


def put_windows(
    config: Reader, given: Given, window: int | None, full: Callable[[int], bool], because: str = ""
) -> None:
    """Give layers the window that `layer_types` says have one. because: why there is none, for the error."""
    usual = [KINDS[not full(index)] for index in range(given["layers"]["depth"])]
    kinds = config.kinds("layer_types", KINDS, usual)
    if window is None and LOCAL in kinds:
        expected = f"a number of tokens, for some layers of layer_types have a window{because}"
        raise config.wrong("sliding_window", window, expected)
    for index, kind in enumerate(kinds):
        change(given, index, "mixer.window", window if kind == LOCAL else None)


def qwen_windows(full: Callable[[int, int], bool] = lambda index, first: index < first) -> Keys:
    """Qwen's windows: `layer_types` says which layers have one; without it, those for which `full`, asked with their
    number and `max_window_layers`, is false."""

    def ask(config: Reader, given: Given) -> None:
        sliding, first = config.flag("use_sliding_window", False), config.integer("max_window_layers", 28, least=0)
        config.pass_over("sliding_window")  # says nothing without the flag
        window = config.window(default=4096) if sliding else None
        because = "" if sliding else ", but use_sliding_window is false"
        put_windows(config, given, window, lambda index: window is None or full(index, first), because)

    def tell(parts: Parts) -> dict[str, Any]:
        windows = windows_of(parts.spec)
        sizes = [window for window in windows if window is not None]
        return {
            "use_sliding_window": bool(sizes),
            "sliding_window": sizes[0] if sizes else None,
            # For versions that do not know layer_types; exact where all layers after the first with one have one.
            "max_window_layers": windows.index(sizes[0]) if sizes else len(windows),
            **write_layer_types(parts.spec),
        }

    return Keys(ask, tell)
