"""Opening and saving: every layout gives the published ids, nothing is lost on the way, errors name the file."""

import base64
import json
import pickle
import struct
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_tokenizer

Opened = Callable[[str], Tokenizer]
TEXT = "Hello  world's 12345 tests.\n\n\tdef f(x): return x  # 你好，世界 😀 ünï 'LL it'S"
REAL = [
    "tokenizers/gpt2_bpe",
    "tokenizers/tokenizer_bert_zh",
    "weights/stories260K/tok512.bin",
    "tokenizers/tokenizer_sp_test/test_model.model",
]


def trained() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, 320)


def same(one: Tokenizer, other: Tokenizer, *texts: str) -> None:
    for text in (TEXT, "<|im_end|> </s> [SEP] <|endoftext|>", "", *texts):
        for specials in (False, True):
            assert one.encode(text, specials=specials) == other.encode(text, specials=specials)
        assert one.decode(one.encode(text)) == other.decode(one.encode(text))
    for name in ("vocab_size", "roles", "bos_id", "eos_id", "pad_id", "eos_ids", "special_ids", "chat_template"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.to_json() == other.to_json()


@pytest.mark.parametrize("make", [trained, byte_tokenizer, lambda: char_tokenizer(TEXT)])
def test_saved_and_loaded_is_the_same(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    tokenizer.save(tmp_path)
    same(tokenizer, Tokenizer.load(tmp_path))
    same(tokenizer, pickle.loads(pickle.dumps(tokenizer)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("place", REAL)
def test_real_ones_survive_saving(opened: Opened, tmp_path: Path, place: str, samples: dict[str, str]) -> None:
    tokenizer = opened(place)
    tokenizer.save(tmp_path)
    same(tokenizer, Tokenizer.load(tmp_path), *(text[:2000] for text in samples.values()))


@pytest.mark.parametrize("place", ["tokenizer_qwen2", "tokenizer_smollm2", "tokenizer_bert_zh"])
def test_ids_equal_transformers(
    data: Path, opened: Opened, tmp_path: Path, place: str, samples: dict[str, str]
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = opened(f"tokenizers/{place}")
    tokenizer.save(tmp_path)
    before = transformers.AutoTokenizer.from_pretrained(data / "tokenizers" / place)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, *(text[:5000] for text in samples.values())):
        ids = tokenizer.encode(text, specials=True)
        assert ids == before.encode(text, add_special_tokens=False, truncation=False)
        assert ids == after.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, specials=True, wrap=True) == after.encode(text)
    for role in ("bos", "eos", "pad"):
        assert getattr(tokenizer, f"{role}_id") == getattr(before, f"{role}_token_id")
        assert getattr(tokenizer, f"{role}_id") == getattr(after, f"{role}_token_id")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_transformers_opens_ours_even_beside_a_model(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = trained()
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert other.encode(TEXT, add_special_tokens=False) == tokenizer.encode(TEXT)
    assert other.encode(TEXT) == tokenizer.encode(TEXT, wrap=True) == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    assert other.decode(other.encode(TEXT), skip_special_tokens=True) == TEXT
    assert other.eos_token_id == tokenizer.eos_id
    assert other.chat_template == tokenizer.chat_template


def test_saving_over_another_tokenizer_leaves_nothing_of_it(tmp_path: Path) -> None:
    files(
        tmp_path,
        chat_template__jinja="old",
        special_tokens_map__json='{"cls_token": "[CLS]"}',
        added_tokens__json='{"x": 9}',
        config__json="{}",
    )
    trained().save(tmp_path)
    same(trained(), Tokenizer.load(tmp_path))
    assert (tmp_path / "config.json").exists()


# -- GPT-2 and Qwen2 ---------------------------------------------------------------------------------------------------


def test_tiktoken_and_encoder_json_agree(data: Path, opened: Opened, samples: dict[str, str]) -> None:
    gpt2 = opened("tokenizers/gpt2_bpe")
    tiktoken = Tokenizer.load(data / "tokenizers/tiktoken_official/r50k_base.tiktoken")
    assert gpt2.vocab_size == tiktoken.vocab_size == 50257
    for text in (TEXT, *samples.values()):
        assert gpt2.encode(text) == tiktoken.encode(text)
    assert gpt2.encode("<|endoftext|>", specials=True) == tiktoken.encode("<|endoftext|>", specials=True) == [50256]
    assert gpt2.encode("Hello world") == [15496, 995]


def rank_merge(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule, said slowly: join the neighbours whose joint ranks best, until none is a token."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        best, at = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
        if best == 1 << 30:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def test_merges_recovered_from_ranks_merge_as_tiktoken_does(data: Path, samples: dict[str, str]) -> None:
    from dougong.tokenizer import split_words

    path = data / "tokenizers/tiktoken_official/cl100k_base.tiktoken"
    lines = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    tokenizer = Tokenizer.load(path)
    for text in samples.values():
        words = split_words(text[:8000], "cl100k")
        assert tokenizer.encode(text[:8000]) == [i for word in words for i in rank_merge(word.encode(), ranks)]
    assert tokenizer.vocab_size == 100277
    with pytest.raises(DougongError, match="id 100261 is outside"):  # a hole
        tokenizer.decode([100261])


def test_qwen2_reads_its_settings(opened: Opened) -> None:
    tokenizer = opened("tokenizers/tokenizer_qwen2")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 151645, 151643)
    assert tokenizer.eos_ids == (151645, 151643)
    assert tokenizer.special_ids == {151643, 151644, 151645}
    assert tokenizer.chat_template


def test_truncation_in_a_file_is_switched_off(data: Path) -> None:
    path = data / "tokenizers/tokenizer_smollm2"
    assert json.loads((path / "tokenizer.json").read_text())["truncation"]["max_length"] == 128
    assert len(Tokenizer.load(path).encode("word " * 500)) > 500


# -- llama2.c ----------------------------------------------------------------------------------------------------------


@cache
def read_bin(path: Path) -> tuple[list[bytes], list[float]]:
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    while at < len(raw):
        score, size = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + size])
        scores.append(score)
        at += 8 + size
    return pieces, scores


def llama2c_encode(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """The rule of llama2.c's encode(), said slowly: a space in front, characters or bytes + 3, then the best score."""
    index = {piece: i for i, piece in enumerate(pieces)}
    ids: list[int] = [index[b" "]] if text else []
    for character in text:
        code = character.encode()
        ids += [index[code]] if code in index else [byte + 3 for byte in code]
    while True:
        best, at = -1e10, -1
        for i in range(len(ids) - 1):
            joint = index.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if joint is not None and scores[joint] > best:
                best, at = scores[joint], i
        if at < 0:
            return ids
        ids[at : at + 2] = [index[pieces[ids[at]] + pieces[ids[at + 1]]]]


@settings(max_examples=60)
@given(
    text=st.text(alphabet="abcdehilnorstuwy  .,'\nTLO", max_size=60)
    | st.text(max_size=20).filter(lambda t: "▁" not in t)
)
def test_llama2c_ids(data: Path, opened: Opened, text: str) -> None:
    path = data / "weights/stories260K/tok512.bin"
    tokenizer, (pieces, scores) = opened("weights/stories260K/tok512.bin"), read_bin(path)
    ids = tokenizer.encode(text)
    assert ids == llama2c_encode(text, pieces, scores)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["tok512.bin", "tok4096.bin"])
def test_llama2c_on_stories(data: Path, name: str) -> None:
    path = data / "weights/stories260K" / name
    tokenizer = Tokenizer.load(path)
    pieces, scores = read_bin(path)
    text = (data / "text/tinystories_samples/tinystories_sample.txt").read_text(encoding="utf-8")[:1500]
    assert tokenizer.encode(text) == llama2c_encode(text, pieces, scores)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, int(name[3:-4]))


def test_llama2c_reference_text(data: Path) -> None:
    known = json.loads((data / "weights/stories260K/reference_greedy_ids.json").read_text())
    ids = known["greedy_ids_from_BOS"]
    tokenizer = Tokenizer.load(data / "weights/stories260K/tok512.bin")
    assert tokenizer.decode(ids) == known["text"]
    assert tokenizer.encode(known["text"], bos=True)[:150] == ids[:150]


def test_llama2c_size_may_be_given(data: Path, tmp_path: Path) -> None:
    raw = (data / "weights/stories260K/tok512.bin").read_bytes()
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(raw + b"\0" * 16)
    assert Tokenizer.load(path, vocab_size=512).vocab_size == 512
    with pytest.raises(DougongError, match="fewer than the 600 asked for"):
        (tmp_path / "t.bin").write_bytes(raw)
        Tokenizer.load(tmp_path / "t.bin", vocab_size=600)


# -- SentencePiece -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(text=st.text(alphabet="abcdehilnorstuwy  .,\n你TLO", max_size=60))
def test_the_model_file_gives_the_ids_of_the_bin_file(opened: Opened, text: str) -> None:
    folder = "weights/stories260K"
    tidy = " ".join(word for word in text.split(" ") if word)  # the .model asks for single spaces, the .bin cannot
    assert opened(f"{folder}/tok512.model").encode(text) == opened(f"{folder}/tok512.bin").encode(tidy)
    assert opened(f"{folder}/tok512.model").roles == opened(f"{folder}/tok512.bin").roles


def viterbi(text: str, scores: dict[str, float]) -> float:
    """The best score of any way to cut `text` into pieces."""
    best = [0.0] + [-1e30] * len(text)
    for stop in range(1, len(text) + 1):
        cuts = (best[start] + scores.get(text[start:stop], -1e9) for start in range(max(0, stop - 20), stop))
        best[stop] = max(cuts)
    return best[-1]


@pytest.mark.parametrize("text", ["I saw a girl with a telescope.", "this is  a test of the model", "ＡＢＣ nfkc"])
def test_unigram_cuts_are_the_best_ones(opened: Opened, text: str) -> None:
    tokenizer = opened("tokenizers/tokenizer_sp_test/test_model.model")
    scores = dict(json.loads(tokenizer.to_json())["model"]["vocab"])
    pieces = [tokenizer.token(index) for index in tokenizer.encode(text)]
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    assert "".join(pieces) == "▁" + plain.replace(" ", "▁")
    assert sum(scores[piece] for piece in pieces) == pytest.approx(viterbi("".join(pieces), scores))
    assert tokenizer.decode(tokenizer.encode(text)) == plain
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)


def test_japanese_unigram_round_trip(opened: Opened) -> None:
    tokenizer = opened("tokenizers/tokenizer_sp_test/test_ja_model.model")
    assert tokenizer.vocab_size == 8000
    text = "私はその人を常に先生と呼んでいた。"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_chat_template_may_stand_in_its_own_file_or_have_a_name(tmp_path: Path) -> None:
    trained().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert Tokenizer.load(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J\n")
    assert Tokenizer.load(tmp_path).chat_template == "J\n"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": 5}))
    with pytest.raises(DougongError, match="chat_template is neither text nor a list"):
        Tokenizer.load(tmp_path)


# -- errors ------------------------------------------------------------------------------------------------------------


def files(folder: Path, **contents: str | bytes) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_vocab_txt_reads_as_the_tokenizer_json_beside_it(data: Path, tmp_path: Path, samples: dict[str, str]) -> None:
    source = data / "tokenizers/tokenizer_bert_zh"
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    one, other = Tokenizer.load(source), Tokenizer.load(tmp_path)
    for text in (TEXT, *(text[:5000] for text in samples.values())):
        assert one.encode(text, wrap=True) == other.encode(text, wrap=True)
    assert one.roles == other.roles


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not valid JSON"),
        ("tokenizer.json", b"\xff\xfe\x00garbage", "tokenizer.json is not UTF-8"),
        ("tokenizer.json", b"[1]", "has no model"),
        ("tokenizer.json", b'{"model": {"type": "Magic"}}', "unknown type 'Magic'"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}', "tokenizer.json is not a tokenizer.json that can be used"),
        ("x.model", b"\n\xff\xff\xff", "no SentencePiece model"),
        ("x.model", b"\n\x03\n\x01a", "no SentencePiece model: it has 1 pieces"),
        ("x.model", b"\0\1\2", "give pattern="),
        ("tok8.bin", b"\x01", "1 bytes"),
        ("tok8.bin", bytes(range(200)), "no llama2.c tokenizer"),
        ("tok8.bin", struct.pack("<ifi", 3, 0.0, 3) + b"<u", "ends within token 0"),
        ("tok8.bin", struct.pack("<ifi", 3, 0.0, 3) + b"<unk", "ends within token 1"),
        ("x.tiktoken", b"IQ== 0", "give pattern= one of"),
        ("cl100k.tiktoken", b"!!! 0", "line 1 is not a token in base64"),
        ("cl100k.tiktoken", b"IQ== 0", "lacks 255 of the 256"),
        ("vocab.txt", b"a\nb\n", "no line .UNK."),
        ("vocab.json", b'{"a": 0}', "merges.txt does not exist"),
        ("notes.md", b"hello", "no tokenizer that is understood"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DougongError, match=message):
        Tokenizer.load(path)


def test_truncating_a_llama2c_file_anywhere_is_noticed_or_gives_fewer_tokens(data: Path, tmp_path: Path) -> None:
    raw = (data / "weights/stories260K/tok512.bin").read_bytes()
    path = tmp_path / "tok.bin"
    for size in range(0, 200, 7):
        path.write_bytes(raw[:size])
        with pytest.raises(DougongError, match=r"tok\.bin"):
            Tokenizer.load(path, vocab_size=512)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(DougongError, match="nowhere does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(DougongError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    files(tmp_path, a__tiktoken="", b__tiktoken="")
    with pytest.raises(DougongError, match=r"several tokenizers \(a.tiktoken, b.tiktoken\)"):
        Tokenizer.load(tmp_path)


def test_merges_with_crlf_and_without_header(tmp_path: Path) -> None:
    vocab = json.dumps({"a": 0, "b": 1, "ab": 2})
    for merges in ("a b\n", "#version: 0.2\r\na b\r\n", "a b"):
        tokenizer = Tokenizer.load(files(tmp_path, vocab__json=vocab, merges__txt=merges))
        assert tokenizer.encode("abba") == [2, 1, 0]
    for merges, message in (("a b c\n", "line 1"), ("a c\n", "do not fit together")):
        with pytest.raises(DougongError, match=message):
            Tokenizer.load(files(tmp_path, merges__txt=merges))


def test_config_that_contradicts_the_vocabulary(tmp_path: Path) -> None:
    trained().save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(DougongError, match="eos_token is '<end>', which the vocabulary lacks"):
        Tokenizer.load(tmp_path)
    config.write_text(json.dumps({"added_tokens_decoder": {"9": {"content": "<new>"}}}))
    with pytest.raises(DougongError, match="'<new>' must have id 9"):
        Tokenizer.load(tmp_path)


def test_eos_comes_from_the_generation_config_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    trained().save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (2, (2, 0))
    (tmp_path / "generation_config.json").unlink()
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.eos_ids) == (None, ())
