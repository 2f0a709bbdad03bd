"""The short causal convolution that recurrent mixers put before their state: each channel sees its own last inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dougong.parts.feedforward import ACTIVATIONS, Activation
from dougong.parts.shapes import Float, Int
from dougong.parts.state import Slot


def past_slot(channels: int, size: int) -> Slot:
    """What a `CausalConv` keeps between calls: the last size - 1 inputs of each channel."""
    return Slot((channels, size - 1), per_token=False)


class CausalConv(nn.Module):
    """y_t = act(bias + sum_i weight[:, 0, i] x_{t - size + 1 + i}), every channel alone (depthwise).

    weight (channels, 1, size), as torch's Conv1d with as many groups as channels has it; x before the start is 0.
    """

    def __init__(self, channels: int, size: int, bias: bool = False, activation: Activation | None = None):
        super().__init__()
        self.channels, self.size, self.activation = channels, size, activation
        self.weight = nn.Parameter(torch.empty(channels, 1, size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def slot(self) -> Slot:
        return past_slot(self.channels, self.size)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        past: Float[Tensor, "B C p"] | None = None,
        counts: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C p"]]:
        """The result, and the past for the next call: the last size - 1 real inputs of each row.

        past    what the previous call gave; None: nothing came before
        counts  how many of a row's T tokens are real, padding standing at its end; None: all
        """
        kept = self.size - 1
        inputs = x.transpose(1, 2)  # (B, C, T)
        # (B, C, size - 1 + T)
        inputs = F.pad(inputs, (kept, 0)) if past is None else torch.cat((past.to(x.dtype), inputs), -1)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.conv1d(inputs, self.weight.to(x.dtype), bias, groups=self.channels).transpose(1, 2)
        if counts is None:
            past = inputs[..., x.shape[1] :]
        else:
            last = counts[:, None] + torch.arange(kept, device=x.device)  # (B, size - 1)
            past = inputs.gather(-1, last[:, None].expand(-1, self.channels, -1))
        return (y if self.activation is None else ACTIVATIONS[self.activation](y)), past

    @torch.no_grad()
    def initial(self, generator: torch.Generator) -> None:
        """Uniform within size^-1/2, which keeps the variance of the inputs below 1; no bias."""
        self.weight.uniform_(-(self.size**-0.5), self.size**-0.5, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def extra_repr(self) -> str:
        return f"channels={self.channels}, size={self.size}, activation={self.activation}"
