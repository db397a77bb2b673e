"""The photographs that tests may use when present."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def voc07_small() -> Path:
    """The folder of voc07-small; skips without it."""
    return _present(SHARED / "voc07-small" / "VOC2007")


@pytest.fixture
def voc12_masks_small() -> Path:
    """The folder of voc12-masks-small; skips without it."""
    return _present(SHARED / "voc12-masks-small" / "VOC2012")


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no photographs at {path}")
    return path
