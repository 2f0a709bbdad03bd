"""Recipes: everything needed to repeat a run, as typed records. A run folder keeps its own in recipe.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dougong.base import DougongError, atomic_file, read_json, record_from, record_to, write_json
from dougong.model import ModelSpec, decoder_spec
from dougong.train.loop import Training
from dougong.train.optimizers import Optimizer
from dougong.train.ranks import Ranks
from dougong.train.schedule import Schedule
from dougong.tune import Tune

R = TypeVar("R")
RESULT = "result.json"


@dataclass(frozen=True)
class TextData:
    """path: files or folders of text (none: the standard library of the running Python). key: the field of JSON lines
    that holds the text. held_out: the share kept for evaluation."""

    path: tuple[Path, ...] = ()
    key: str = "text"
    held_out: float = 0.05


@dataclass(frozen=True)
class TokenizerChoice:
    """path: an existing tokenizer (file or folder); none: a byte-level BPE of `vocab` entries is trained on the data.
    pattern: how text is cut into words first ("qwen2": every digit alone)."""

    path: Path | None = None
    vocab: int = 4096
    pattern: str = "qwen2"


@dataclass(frozen=True)
class Architecture:
    """A decoder with pre-RMSNorm, RoPE and SwiGLU; or `load`, a model folder to go on from, which decides all else.

    ffn: width of the feed-forward (0: 8/3 of the width). kv_heads: 0 means as many as heads. context: longest text the
    model is made for (0: the training length)."""

    load: Path | None = None
    width: int = 256
    depth: int = 4
    heads: int = 4
    kv_heads: int = 0
    ffn: int = 0
    theta: float = 10000.0
    qk_norm: bool = False
    tied: bool = False
    context: int = 0

    def __post_init__(self) -> None:
        at_least(self, width=1, depth=1, heads=1, kv_heads=0, ffn=0, context=0)
        self.spec(vocab=1, length=1)  # refuses what does not fit together, before any work

    def spec(self, vocab: int, length: int) -> ModelSpec:
        """The model for a vocabulary and a training length."""
        return decoder_spec(
            vocab,
            self.width,
            self.depth,
            self.heads,
            max(self.context, length),
            kv_heads=self.kv_heads or None,
            ffn=self.ffn or None,
            theta=self.theta,
            qk_norm=self.qk_norm,
            tied=self.tied,
        )


@dataclass(frozen=True)
class Pretrain:
    """Train a decoder on text, from scratch or further. A recipe file may come first; flags override it.

    run     the folder of the run. batch: rows of `length` tokens in an update, over all processes
    masked  rows keep documents apart; without, tokens also see what stood before their document
    --resume goes on with a run that was stopped, to the same weights as without the stop.

    examples:
      dougong pretrain --run runs/novel --data.path novel.txt --training.steps 500
      dougong pretrain recipe.yaml --model.width 512 --resume
      torchrun --nproc-per-node 2 -m dougong.cli pretrain recipe.yaml
    """

    run: Path = Path("runs/pretrain")
    data: TextData = field(default_factory=TextData)
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    model: Architecture = field(default_factory=Architecture)
    training: Training = field(default_factory=Training)
    batch: int = 16
    length: int = 256
    masked: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, batch=1, length=2)


@dataclass(frozen=True)
class ChatData:
    """path: files or folders of conversations (messages, alpaca or sharegpt, JSON or JSON lines). weights: how often
    each of them is drawn from, in the order of path (none: as they are). turns: the assistant's turns that are learnt,
    all or the last of a conversation. held_out: the share of conversations kept for evaluation. too_long: what happens
    to those longer than a row."""

    path: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    turns: Literal["all", "last"] = "all"
    held_out: float = 0.05
    too_long: Literal["refuse", "truncate"] = "truncate"

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.path):
            raise DougongError(f"data.weights has {len(self.weights)} numbers for {len(self.path)} paths")
        if any(weight <= 0 for weight in self.weights):
            raise DougongError(f"data.weights is {list(self.weights)}; expected numbers above 0")


def _sft_training() -> Training:
    optimizer = Optimizer(rate=2e-4, weight_decay=0.0)
    return Training(steps=300, optimizer=optimizer, schedule=Schedule("linear", warmup=20, final=0.0))


@dataclass(frozen=True)
class Sft:
    """Teach a model conversations, with loss on the assistant's tokens only. A recipe file may come first; flags
    override it.

    model   the folder of the model to start from. epochs: passes over the data (0: training.steps decides)
    layout  packed: several conversations in a row, which do not see each other; padded: one in a row
    tune    train an adapter instead of all weights: RUN/adapter is then the result, and `dougong merge RUN` makes a
            model of it
    --resume goes on with a run that was stopped, to the same weights as without the stop.

    examples:
      dougong sft --model runs/pretrain --run runs/sft --data.path chats.jsonl --epochs 2
      dougong sft recipe.yaml --training.optimizer.rate 1e-4 --resume
      dougong sft --model runs/pretrain --data.path chats.jsonl --tune.method lora --tune.options rank 16 alpha 32
    """

    model: Path = Path("runs/pretrain")
    run: Path = Path("runs/sft")
    data: ChatData = field(default_factory=ChatData)
    tune: Tune = field(default_factory=Tune)
    training: Training = field(default_factory=_sft_training)
    epochs: float = 0.0
    batch: int = 16
    length: int = 512
    layout: Literal["packed", "padded"] = "packed"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, batch=1, length=2)
        if self.epochs < 0:
            raise DougongError(f"epochs is {self.epochs}; expected 0 or more")


def at_least(recipe: Any, **least: int) -> None:
    """Raise DougongError for the first of the named settings that is below its least value."""
    for name, value in least.items():
        if getattr(recipe, name) < value:
            raise DougongError(f"{name} is {getattr(recipe, name)}; expected at least {value}")


def read_recipe(kind: type[R], path: Path) -> R:
    """Read a YAML recipe; keys left out take their defaults. Raises DougongError that names an unknown or wrong key."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DougongError(f"the recipe {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        reason = str(error).replace("\n", " ")
        raise DougongError(f"the recipe {path} is not readable YAML: {reason}") from None
    try:
        return record_from(kind, data or {})
    except DougongError as error:
        raise DougongError(f"{path}: {error}") from None


def write_recipe(path: Path, recipe: Any) -> None:
    """Write a recipe as YAML, atomically."""
    import yaml

    with atomic_file(path) as stream:
        yaml.safe_dump(record_to(recipe), stream, sort_keys=False, allow_unicode=True)


def open_run(recipe: Any, resume: bool) -> Path:
    """Make the run folder and note the recipe in it.

    Raises DougongError when the folder holds another run: `--resume` goes on with the same recipe, and only with that.
    """
    run: Path = recipe.run
    noted = run / "recipe.yaml"
    if noted.is_file() and any(path != noted for path in run.iterdir()):  # more than a start that failed at once
        if not resume:
            raise DougongError(f"{run} already holds a run; --resume goes on with it, --run names another folder")
        before = read_recipe(type(recipe), noted)
        if before != recipe:
            raise DougongError(f"{run} was begun with other settings ({_difference(before, recipe)}); restore them")
    elif run.exists() and not run.is_dir():
        raise DougongError(f"{run} is a file; --run names the folder of the run")
    else:
        write_recipe(noted, recipe)
    return run


def begin(recipe: Any, given: object | None, what: str, resume: bool) -> tuple[Ranks, dict[str, float] | None]:
    """The opening of a job that reads `what` from data.path or was `given` them: the ranks that share it, with its run
    folder made; and the figures of a run that is finished already, which a resumed job only tells again.

    Raises DougongError where nothing is given or named, and as `open_run` does.
    """
    ranks = Ranks.join()
    if given is None and not recipe.data.path:
        raise DougongError(f"data.path is empty; name the files of {what} to learn from")
    if ranks.first:
        open_run(recipe, resume)
    ranks.wait()
    result = recipe.run / RESULT
    return ranks, read_json(result) if resume and result.is_file() else None


def finish(recipe: Any, ranks: Ranks, figures: dict[str, float], save: Callable[[], None]) -> dict[str, float]:
    """The end of a job: the first rank saves what was learnt and then the figures, which say that the run is whole."""
    if ranks.first:
        save()
        write_json(recipe.run / RESULT, figures)
    ranks.wait()
    return figures


def _difference(before: Any, after: Any) -> str:
    """The first setting in which two recipes differ, in words."""

    def flat(data: Any, path: str = "") -> dict[str, Any]:
        if isinstance(data, dict):
            return {
                k: v for key, value in data.items() for k, v in flat(value, f"{path}.{key}" if path else key).items()
            }
        return {path: data}

    old, new = flat(record_to(before)), flat(record_to(after))
    for key in old:
        if old[key] != new.get(key):
            return f"{key} was {old[key]!r}, now {new.get(key)!r}"
    return "the kinds differ"
