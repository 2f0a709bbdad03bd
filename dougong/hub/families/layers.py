"""What layers of decoders have in common, and how a config.json says which layers are of which kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    search,
    settings,
    share,
)
from dougong.hub.families.reader import Reader
from dougong.model.spec import ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import MLP, GatedMLP

GATED, PLAIN = {"mixer": Attention, "ffn": GatedMLP}, {"mixer": Attention, "ffn": MLP}
"""The kinds of most families' layers."""
MISSING = object()
KINDS = FULL, LOCAL = ("full_attention", "sliding_attention")


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


def sizes(
    width: str, depth: str, heads: str, context: str, longest: int = 2048, learned: bool = False
) -> tuple[Entry, ...]:
    """The usual keys in GPT-2's manner, under the family's names for them (older ones behind, apart by spaces): heads
    divide the width, norms are LayerNorm's, and the head is tied where the config does not say.

    longest: the context where the config does not say; learned: it has as many positions, which are learned.
    """

    def size(names: str, place: str, usual: int | None = None) -> Key:
        name, *older = names.split()
        return integer(name, place, usual, also=" ".join(older))

    return (
        integer("vocab_size", "model.vocab"),
        size(width, "model.width"),
        size(depth, "layers.depth"),
        size(heads, "mixer.heads mixer.kv_heads"),
        whole_heads(heads.split()[0]),
        size(context, "model.context embedding.position.size" if learned else "model.context", longest),
        number("layer_norm_epsilon", "norm.eps", 1e-5),
        flag("tie_word_embeddings", "head.tied", True),
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
        *attention(None, kv_heads, head_size, mixer),
        integer("intermediate_size", ffn),
        act or activation("hidden_act", ffn.replace(".hidden", ".activation"), "silu"),
    )


def attention(
    count: int | None, kv_heads: int | None, size: int | None = None, mixer: str = "mixer"
) -> tuple[Entry, ...]:
    """The usual keys of attention, with the family's numbers for keys that the config leaves out (`decoder`)."""
    return (
        integer("num_attention_heads", f"{mixer}.heads", count),
        key_heads(mixer, kv_heads),
        head_size(mixer, size),
        share("attention_dropout", f"{mixer}.dropout"),
    )


def key_heads(mixer: str, usual: int | None) -> Key:
    """transformers: a missing key takes the family's default (None: one for each head), null means one for each."""

    def ask(config: Reader, key: str, heads: int) -> int:
        return (usual or heads) if config.raw(key, MISSING) is MISSING else config.integer(key, heads)

    return Key("num_key_value_heads", f"{mixer}.kv_heads", ask, lambda given: given[mixer]["heads"])


def head_size(mixer: str, usual: int | None) -> Key:
    """A missing key means `usual`, or the width over the heads, of which there can then be no more."""

    def ask(config: Reader, key: str, share: int) -> int:
        if not share and key not in config:
            heads = "num_attention_heads"
            raise config.wrong(
                heads, config.raw(heads), f"1 to hidden_size, {config.raw('hidden_size')}, or a head_dim"
            )
        return config.integer(key, share)

    return Key("head_dim", f"{mixer}.head_size", ask, usual or quotient(mixer))


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


def linear_layers(kind: str, usual: Callable[[Reader, Given], Sequence[str]]) -> Keys:
    """Attention in some layers, and in the others what has no scores: mixers of this kind."""
    return pattern("layer_types", "mixers", {FULL: "mixer", "linear_attention": kind}, usual)


def in_turn(depth: int, step: int, first: int, those: str, others: str) -> list[str]:
    """Of `depth` layers every `step`-th is of one kind, from layer first % step on, the rest of another; 0: none."""
    return [those if step and index % step == first % step else others for index in range(depth)]


def turn(name: str, period: int, offset: int, slot: str, those: str, others: str) -> Keys:
    """Layers with index % period == offset are of one kind, the rest of another."""

    def ask(config: Reader, given: Given) -> None:
        step, first = config.integer(f"{name}_period", period), config.integer(f"{name}_offset", offset, least=0)
        if first >= step:
            raise config.wrong(f"{name}_offset", first, f"less than {name}_period, {step}")
        given["layers"][slot] = in_turn(given["layers"]["depth"], step, first, those, others)

    def ways(parts: Parts) -> Iterable[dict[str, Any]]:
        most = len(parts.spec.layers) + 1
        return settings(**{f"{name}_period": range(1, most + 1), f"{name}_offset": range(most)})

    return search(ask, ways)


def every(key: str, usual: int, others: str, those: str) -> Callable[[Reader, Given], list[str]]:
    """For `pattern`: the last of each so many layers, as `key` says, is of kind `those`."""

    def kinds(config: Reader, given: Given) -> list[str]:
        step = config.integer(key, usual)
        return in_turn(given["layers"]["depth"], step, step - 1, those, others)

    return kinds


def windows_of(spec: ModelSpec) -> list[int | None]:
    return [layer.mixer.window if isinstance(layer.mixer, Attention) else None for layer in spec.layers]


def write_layer_types(spec: ModelSpec) -> dict[str, Any]:
    return {"layer_types": [KINDS[window is not None] for window in windows_of(spec)]}


def local_layers(size: int, full: Callable[[Reader, int], bool], around: str = "") -> Keys:
    """Windows where `layer_types` says which layers have one; without it, those for whose number `full` is false.

    size: the window of a config that gives none; around: the name of a key that counts tokens on both sides, instead of
    "sliding_window", which counts those up to the token's own.
    """

    def ask(config: Reader, given: Given) -> None:
        window = config.integer(around, size, least=2) // 2 + 1 if around else config.window(default=size)
        put_windows(config, given, window, lambda index: full(config, index))

    def tell(parts: Parts) -> dict[str, Any]:
        window = next(filter(None, windows_of(parts.spec)), size // 2 + 1 if around else size)
        key = {around: 2 * (window - 1)} if around else {"sliding_window": window}
        return {**key, **write_layer_types(parts.spec)}

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
