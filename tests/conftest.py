"""Every test runs with the shapes in our signatures checked, on a single thread, and without a network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from jaxtyping import install_import_hook

import tests.checking  # noqa: F401  (the hook names it)

# Before anything imports dougong: beartype then checks every jaxtyping annotation of the package at every call.
install_import_hook("dougong", "tests.checking.checked")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile(
    "dougong", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("dougong")


@pytest.fixture
def data() -> Path:
    """The folder of real data, or a skip."""
    place = os.environ.get("DOUGONG_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("DOUGONG_DATA does not name the folder of real data")
    return Path(place)
