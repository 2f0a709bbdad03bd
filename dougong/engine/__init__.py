"""The engine: the only generator. Chat, server, RL rollouts, evaluation, retrieval and agents call it.

`sampling` what a request may ask; `filters` the pure functions that choose a token; `text` tokens to text, with stop
strings; `request` one request and its end; `rows` sequences of a batch and their cache; `engine` the loop; `score` the
log-probabilities of given tokens.
"""

from dougong.engine.engine import Engine
from dougong.engine.request import Completion, Event, FinishReason
from dougong.engine.sampling import Sampling

__all__ = ["Completion", "Engine", "Event", "FinishReason", "Sampling"]
