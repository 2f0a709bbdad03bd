"""Multi-token prediction (MTP, DeepSeek-V3 2024): further layers that each see one token more and predict the next.

With e_t the embedding of token t and h^0 the model's hidden states, depth k = 1, 2 ... is

    h^k_t = norm(layer_k(W_k [norm(e_{t+k}); norm(h^{k-1}_t)]))        the head then reads token t + k + 1 from h^k_t

so each prediction keeps the whole chain of tokens before it. Embedding and head are the model's own. (The paper writes
h first in the brackets; its checkpoints, and so we, have e first.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.model.block import Block
from dougong.model.spec import MTP
from dougong.parts.context import Context
from dougong.parts.linear import Linear
from dougong.parts.shapes import Float


class MTPLayer(nn.Module):
    def __init__(self, spec: MTP, width: int):
        super().__init__()
        self.embedding_norm = spec.norm.build(width)
        self.hidden_norm = spec.norm.build(width)
        self.join = Linear(2 * width, width)
        self.block = Block(spec.layer, width)
        self.norm = spec.norm.build(width)

    def forward(
        self, hidden: Float[Tensor, "B T D"], later: Float[Tensor, "B T D"], ctx: Context
    ) -> Float[Tensor, "B T D"]:
        both = torch.cat((self.embedding_norm(later), self.hidden_norm(hidden)), -1)
        return self.norm(self.block(self.join(both), ctx))


class MTPLayers(nn.Module):
    """The layers of all depths, for whole rows: in training, or to look at what they predict."""

    def __init__(self, spec: MTP, width: int):
        super().__init__()
        self.layers = nn.ModuleList(MTPLayer(spec, width) for _ in range(spec.depth))

    def forward(
        self, hidden: Float[Tensor, "B T D"], embedded: Float[Tensor, "B T D"], ctx: Context
    ) -> list[Float[Tensor, "B T D"]]:
        """Hidden states of each depth, from the model's (after its last norm) and the embeddings of the same tokens.

        The last k places of depth k, of a row or of a document in it, lack their token: they mean nothing, and no
        earlier place sees them.
        """
        out = []
        for depth, layer in enumerate(self.layers, 1):
            later = F.pad(embedded[:, depth:], (0, 0, 0, min(depth, embedded.shape[1])))
            hidden = layer(hidden, later, ctx)
            out.append(hidden)
        return out
