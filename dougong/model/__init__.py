"""Models: a spec (data) and the module it describes."""

from dougong.model.decoder import Model, Output
from dougong.model.init import initialise
from dougong.model.spec import LayerSpec, ModelSpec, decoder_spec

__all__ = ["LayerSpec", "Model", "ModelSpec", "Output", "decoder_spec", "initialise"]
