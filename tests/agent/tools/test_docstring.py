"""What a docstring says of a tool and its parameters, in the styles in use."""

from __future__ import annotations

import pytest

from dougong.agent.docstring import read_docstring

GOOGLE = """Find it.

    Everywhere.

    Args:
        where (str): the place,
            in full
        count: how many

    Returns:
        what was found
    """
NUMPY = """Find it.

    Everywhere.

    Parameters
    ----------
    where : str
        the place,
        in full
    count
        how many

    Returns
    -------
    str
        what was found
    """
SPHINX = """Find it.

    Everywhere.

    :param str where: the place,
        in full
    :param count: how many
    :type count: int
    """
PLAIN = """Find it.

    Everywhere. note: this is no parameter

    where: the place,
        in full
    count: how many
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX, PLAIN], ids=["google", "numpy", "sphinx", "plain"])
def test_docstrings(text):
    description, found = read_docstring(text, ["where", "count"])
    assert found == {"where": "the place, in full", "count": "how many"}
    assert description.startswith("Find it.\n\nEverywhere.")
    assert "in full" not in description and "count" not in description
    assert ("what was found" in description) == ("Returns" in text)


def test_no_docstring():
    assert read_docstring(None, ["a"]) == ("", {})
