"""Whole jobs and files run without the checking of annotations, which the properties of single methods have."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """No checking at run time in the tests of jobs and of PEFT's files."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", request.path.name in ("test_training.py", "test_peft.py"))
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
