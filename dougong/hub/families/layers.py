"""What layers of decoders have in common, and how a config.json says which layers are of which kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dougong.base import DougongError
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
HEADS = "mixer.heads mixer.kv_heads"
"""As many key heads as heads."""
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
    width: str,
    depth: str,
    count: str,
    context: str = "max_position_embeddings",
    longest: int = 2048,
    learned: bool = False,
    eps: float | None = 1e-5,
    usual: tuple[int | None, ...] = (None, None, None, None),
) -> tuple[Entry, ...]:
    """The usual keys in GPT-2's manner, under the family's names for them (older ones behind, apart by spaces): heads
    divide the width, norms are LayerNorm's, and the head is tied where the config does not say.

    count: of heads; longest: the context where the config does not say; learned: it has as many positions, which are
    learned; eps: None where norms have no key; usual: vocabulary, width, depth and heads where the config does not say.
    """

    def size(names: str, place: str, usual: int | None) -> Key:
        name, *older = names.split()
        return integer(name, place, usual, also=" ".join(older))

    return (
        integer("vocab_size", "model.vocab", usual[0]),
        size(width, "model.width", usual[1]),
        size(depth, "layers.depth", usual[2]),
        *plain_heads(count, usual[3]),
        size(context, "model.context embedding.position.size" if learned else "model.context", longest),
        *([] if eps is None else [number("layer_norm_epsilon", "norm.eps", eps)]),
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


def by_depth(mixer: str, make: Callable[[int, int, int], Any]) -> Callable[[Given, int], Any]:
    """For `Table.each`: made of the mixer's heads, of the layer's number and of how many layers there are."""
    return lambda given, index: make(given[mixer]["heads"], index, given["layers"]["depth"])


def bias(name: str = "attention_bias", usual: bool = False, mixer: str = "mixer") -> Key:
    return flag(name, f"{mixer}.bias {mixer}.out_bias", usual)


def all_heads(key: str, mixer: str = "mixer") -> Callable[[Given], int]:
    """As many key heads as heads: DougongError where `key` has told another number of them."""

    def count(given: Given) -> int:
        told, heads = given[mixer]["kv_heads"], given[mixer]["heads"]
        if told != heads:
            raise DougongError(f"config.json: {key} is {told}; expected {heads}, one for each head")
        return heads

    return count


def plain_heads(names: str, usual: int | None = None) -> tuple[Entry, ...]:
    """As many key heads as heads, which divide the width; older names of the key behind, apart by spaces."""
    name, *older = names.split()
    return integer(name, HEADS, usual, also=" ".join(older)), whole_heads(name)


def whole_heads(key: str, mixer: str = "mixer") -> Keys:
    """The heads, told by `key`, divide the width."""

    def ask(config: Reader, given: Given) -> None:
        put(given, f"{mixer}.head_size", config.head_size(given["model"]["width"], key, given[mixer]["heads"]))

    return Keys(ask)


def outputs(mixer: str, ffn: str | None = None) -> Keys:
    """Keys for the share of each sublayer's output that is dropped; side by side, `ffn` is that of their sum, and
    `mixer` says nothing. The keys of the wiring are read before. ffn: None where no key drops the feed-forward's."""

    def ask(config: Reader, given: Given) -> None:
        layer, first, second = given.setdefault("layer", {}), config.share(mixer), config.share(ffn) if ffn else 0.0
        apart = first != second and not layer.get("wiring", "pre").startswith("parallel")
        layer |= {"dropout": first, "ffn_dropout": second} if apart else {"dropout": second}

    def tell(parts: Parts) -> dict[str, Any]:
        layer = parts.held["layer"]
        second = layer.dropout if layer.ffn_dropout is None else layer.ffn_dropout
        first = {} if layer.wiring.startswith("parallel") else {mixer: layer.dropout}
        return {**first, **({ffn: second} if ffn else {})}

    return Keys(ask, tell)


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


def numbered(slot: str, kinds: Mapping[str, str], usual: Callable[[int], str]) -> Keys:
    """A key for each kind of a layer's mixer or feed-forward (`pattern`) that lists the layers of it, from 1 on.

    usual: the kind of a layer, by its number from 0 on, where one of the keys is missing.
    """

    def ask(config: Reader, given: Given) -> None:
        depth, found = given["layers"]["depth"], {kind: config.raw(key) for key, kind in kinds.items()}
        told = [usual(index) for index in range(depth)]
        if all(isinstance(numbers, list) for numbers in found.values()):
            listed = [number for numbers in found.values() for number in numbers]
            if len(listed) != depth or any(index + 1 not in listed for index in range(depth)):
                raise config.wrong(" and ".join(kinds), [*found.values()], f"every number from 1 to {depth} once")
            told = [next(kind for kind in found if index + 1 in found[kind]) for index in range(depth)]
        given["layers"][slot] = told

    def tell(parts: Parts) -> dict[str, Any]:
        told = [parts.kind_of(getattr(layer, slot[:-1]), kinds.values()) for layer in parts.spec.layers]
        return {key: [index + 1 for index, each in enumerate(told) if each == kind] for key, kind in kinds.items()}

    return Keys(ask, tell)


def everywhere(kind: str) -> Callable[[Given], list[str]]:
    """The same kind in all layers, for "layers.mixers" or "layers.ffns"."""
    return lambda given: [kind] * given["layers"]["depth"]


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


def some(number: str, usual: int, step: str, slot: str, those: str, others: str) -> Keys:
    """Of one kind are so many layers, or every so many, which counts where both are there: the second of each, or all,
    or none."""

    def stepped(depth: int, some: int) -> int:
        """As in transformers, 0 layers ask for one, and more than there are for none."""
        return depth // some if some else depth

    def ask(config: Reader, given: Given) -> None:
        depth = given["layers"]["depth"]
        size = config.integer(step, stepped(depth, config.integer(number, usual, least=0)), least=0)
        given["layers"][slot] = in_turn(depth, size, 1, those, others)

    def ways(parts: Parts) -> Iterable[dict[str, Any]]:
        """Keys that agree with each other, before those that do not."""
        told = [parts.kind_of(getattr(layer, slot[:-1]), (those, others)) for layer in parts.spec.layers]
        depth = len(told)
        yield from ({number: each, step: stepped(depth, each)} for each in (*range(1, depth + 2), 0))
        yield from ({number: told.count(those), step: each} for each in range(depth + 1))

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


def nth(names: str, usual: int, first: int) -> Callable[[Reader, int], bool]:
    """For `local_layers`: every so many layers, from layer first % step on; -1 is the last of each so many. Names: of
    the key, or of several."""

    def full(config: Reader, index: int) -> bool:
        step, *_ = [*(config.integer(name) for name in names.split() if config.raw(name) is not None), usual]
        return index % step == first % step

    return full


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
