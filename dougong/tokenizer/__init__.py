"""Text to ids and back: training, loading, chat templates. Depends on `dougong.base` alone.

`Tokenizer` is what the floors above use; `BPE` and `train_bpe` are the same ideas as readable code.
"""

from dougong.tokenizer.bpe import BPE
from dougong.tokenizer.build import (
    DEFAULT_ROLES,
    SPECIAL_TOKENS,
    byte_tokenizer,
    char_tokenizer,
    train_tokenizer,
)
from dougong.tokenizer.chat import ChatTokens
from dougong.tokenizer.chatml import CHATML_TEMPLATE
from dougong.tokenizer.patterns import PATTERNS, split_words
from dougong.tokenizer.stream import StreamDecoder
from dougong.tokenizer.tokenizer import Tokenizer
from dougong.tokenizer.train_bpe import TrainedBPE, count_words, train_bpe
from dougong.tokenizer.words import Words, words_named

__all__ = [
    "BPE",
    "CHATML_TEMPLATE",
    "DEFAULT_ROLES",
    "PATTERNS",
    "SPECIAL_TOKENS",
    "ChatTokens",
    "StreamDecoder",
    "Tokenizer",
    "TrainedBPE",
    "Words",
    "byte_tokenizer",
    "char_tokenizer",
    "count_words",
    "split_words",
    "train_bpe",
    "train_tokenizer",
    "words_named",
]
