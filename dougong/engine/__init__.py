"""The engine: the only generator. Chat, server, RL rollouts, evaluation, retrieval and agents call it.

What a request is: `sampling` what it may ask; `prompts` its ids; `request` one answer and its end; `text` tokens to
text, with stop strings; `grammar` what it must match (`vocabulary`: in tokens; `json_grammar`, `json_lengths`: JSON and
its strings). How a token is chosen: `processor` (another distribution in the place of the model's), `filters`,
`choose`, `largest`. How a request goes on: `driver`, or `beam`, `contrastive`, `speculate` (and `propose`, who
guesses). Who runs when: `scheduler`. Where state lies: `pages` (who owns what), `prefix` (who begins alike), `store`
and `fixed` (the tensors), `lanes` (what decodes, side by side), `budget` (how much). What runs the model: `passes`,
`runner`, `decode` (on a GPU), `taped` and `writing` (by our own kernels in one call), in a `setting` (a source, one of
the `adapters`). In front of all: `ticket` (a request made ready), `engine`, and `service` for asyncio. Beside them:
`score`, `embed` (states and vectors), `evaluating`.
"""

from dougong.engine.engine import Engine
from dougong.engine.grammar import Grammar
from dougong.engine.processor import LogitsProcessor
from dougong.engine.request import Completion, Event, FinishReason
from dougong.engine.sampling import Contrastive, Sampling
from dougong.engine.service import Service
from dougong.engine.ticket import Ticket

__all__ = [
    "Completion",
    "Contrastive",
    "Engine",
    "Event",
    "FinishReason",
    "Grammar",
    "LogitsProcessor",
    "Sampling",
    "Service",
    "Ticket",
]
