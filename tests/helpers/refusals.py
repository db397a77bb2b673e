"""What a refusal of a file is: one line that names it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from weaksam_jax.errors import BadInput


def refusal(read: Callable, path: Path, *words: str, error: type[BadInput] = BadInput) -> str:
    """The one line with which `read` refuses a file: it names the file, holds the words, and tells
    nobody to delete it."""
    with pytest.raises(error) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line and "delete" not in line
    for word in words:
        assert word in line, line
    return line
