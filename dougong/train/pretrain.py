"""Pretraining as a job: text to tokenizer to tokens to model, each stage left whole in the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from dougong.base import DougongError, read_json, write_json
from dougong.data import (
    Document,
    TokenStore,
    batches,
    encode_documents,
    read_documents,
    split_documents,
    standard_library,
)
from dougong.data.batch import Batch
from dougong.data.loader import LoaderState
from dougong.hub import LanguageModel, load, save
from dougong.model import Model, initialise
from dougong.tokenizer import Tokenizer, train_tokenizer
from dougong.train.held_out import held_out_bits
from dougong.train.loop import train
from dougong.train.monitor import Progress
from dougong.train.ranks import Ranks
from dougong.train.recipe import Architecture, Pretrain, TextData, TokenizerChoice, open_run


def collect(data: TextData) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents. Raises DougongError when there is no readable text."""
    documents = read_documents(data.path, key=data.key) if data.path else standard_library()
    return split_documents(documents, data.held_out)


def make_tokenizer(choice: TokenizerChoice, documents: list[Document]) -> Tokenizer:
    """Load the tokenizer that the recipe names, or train one on the documents."""
    if choice.path is not None:
        return Tokenizer.load(choice.path)
    size = sum(len(document.text) for document in documents)
    with Progress("tokenizer", choice.vocab) as bar:
        texts = (document.text for document in documents)
        tokenizer = train_tokenizer(texts, choice.vocab, pattern=choice.pattern)
        bar.update(choice.vocab, f"learned from {size / 1e6:.1f} million characters")
    return tokenizer


def make_tokens(tokenizer: Tokenizer, documents: list[Document], folder: Path) -> TokenStore:
    """Encode the documents into `folder`, once; later calls open what is there."""
    if not (folder / "tokens.json").is_file():
        with Progress(f"encode {folder.name}", len(documents)) as bar:

            def tell(done: int, size: int) -> None:
                bar.update(done, f"{size / 1e6:.1f} MB")

            encode_documents(tokenizer, documents, progress=tell).save(folder)
    return TokenStore.load(folder)


def make_model(choice: Architecture, tokenizer: Tokenizer, length: int, seed: int) -> LanguageModel:
    """Load the model that the recipe names, or build one and initialise it from the seed."""
    if choice.load is not None:
        lm = load(choice.load)
        if tokenizer.vocab_size > lm.spec.vocab:
            raise DougongError(
                f"the tokenizer has {tokenizer.vocab_size} entries, but {choice.load} has {lm.spec.vocab} embeddings; "
                "name the model's own with tokenizer.path"
            )
        lm.model.float()
        lm.tokenizer = tokenizer
        return lm
    spec = choice.spec(tokenizer.vocab_size, length)
    return LanguageModel(initialise(Model(spec), seed), tokenizer)


def prepare(recipe: Pretrain) -> tuple[Tokenizer, TokenStore, TokenStore]:
    """The tokenizer and the (training, held-out) tokens of a run, made once and kept in its folder."""
    run = recipe.run
    done = run / "data.json"
    if not done.is_file():
        train_documents, held_out = collect(recipe.data)
        if recipe.tokenizer.path is None and recipe.model.load is not None:
            tokenizer = Tokenizer.load(_model_folder(recipe.model.load))
        else:
            tokenizer = make_tokenizer(recipe.tokenizer, train_documents)
        tokenizer.save(run / "tokenizer")
        for part, documents in (("train", train_documents), ("held_out", held_out)):
            shutil.rmtree(run / "tokens" / part, ignore_errors=True)
            make_tokens(tokenizer, documents, run / "tokens" / part)
        sources = [{"source": d.source, "licence": d.licence, "bytes": len(d.text.encode())} for d in train_documents]
        write_json(done, {"documents": len(train_documents), "held_out": len(held_out), "sources": sources})
    tokenizer = Tokenizer.load(run / "tokenizer")
    stores = [TokenStore.load(run / "tokens" / part) for part in ("train", "held_out")]
    return tokenizer, stores[0], stores[1]


def _model_folder(path: Path) -> Path:
    return path / "model" if (path / "model").is_dir() else path


def pretrain(recipe: Pretrain, resume: bool = False, quiet: bool = False) -> dict[str, float]:
    """Run a recipe; returns the figures that it also writes to RUN/result.json. The model is RUN/model.

    Raises DougongError for whatever is wrong with recipe or data, before training; `Stopped` when interrupted.
    """
    ranks = Ranks.join()
    result = recipe.run / "result.json"
    if ranks.first:
        open_run(recipe, resume)
        if not (resume and result.is_file()):
            prepare(recipe)
    ranks.wait()
    if resume and result.is_file():
        return read_json(result)
    tokenizer, train_store, held_out = prepare(recipe)
    lm = make_model(recipe.model, tokenizer, recipe.length, recipe.seed)

    def stream(state: LoaderState | None, ranks: Ranks) -> Iterator[tuple[Batch, LoaderState]]:
        return batches(
            train_store, recipe.batch, recipe.length, seed=recipe.seed, state=state, rank=ranks.rank, world=ranks.world,
            masked=recipe.masked,
        )  # fmt: skip

    def evaluate(model: Model) -> Mapping[str, float]:
        return {"held_out_bits_per_byte": held_out_bits(model, held_out, recipe.length)} if ranks.first else {}

    train(
        lm.model, stream, recipe.training, recipe.run, evaluate=evaluate, resume=resume, label="pretrain", quiet=quiet
    )
    overlap = recipe.length // 2
    figures = {
        "parameters": lm.spec.parameters(),
        "train_bytes": train_store.bytes,
        "train_tokens": train_store.tokens,
        "bytes_per_token": train_store.bytes_per_token,
        "held_out_bytes": held_out.bytes,
        "held_out_bits_per_byte": held_out_bits(lm.model, held_out, recipe.length, overlap) if ranks.first else 0.0,
    }
    if ranks.first:
        save(lm, recipe.run / "model")
        write_json(result, figures)
    ranks.wait()
    return figures
