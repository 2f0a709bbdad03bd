"""Models on disk and on the hub: one way in, one way out.

`load` reads folders in Hugging Face layout, run folders, llama2.c checkpoints and hub ids; `save` writes Hugging Face
layout under the family's own names. `families` holds what differs between families, `formats` between kinds of files.
"""

from dougong.hub.language_model import LanguageModel
from dougong.hub.reading import load
from dougong.hub.writing import save

__all__ = ["LanguageModel", "load", "save"]
