"""Models in fewer bytes, and faster: each transform is one walk over the Linears of a model, whatever its family.

fuse(lm)                     one product for q, k and v, one for gate and up
quantize(lm, "int8")         8-bit weights and activations; "int4": 4-bit weights; "packed": floats for oneDNN
load(path, quantize="int4")  a model whose matrices are quantised as they are read
"""

from dougong.compress.fuse import fuse
from dougong.compress.load import load
from dougong.compress.quantize import METHODS, Quantized, quantize

__all__ = ["METHODS", "Quantized", "fuse", "load", "quantize"]
