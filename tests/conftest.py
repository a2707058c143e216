"""Fixtures that more than one room's tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of small real data sets; tests that ask for it skip where it is absent."""
    root = Path(os.environ.get("MOCO_DET_DATA", REPO.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no sample data at {root}; set MOCO_DET_DATA")
    return root
