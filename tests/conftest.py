"""Fixtures that the tests of more than one package need, and the device of the tests marked gpu."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """--device cpu rehearses the tests of tests/gpu where there is no GPU."""
    parser.addoption("--device", choices=["cuda", "cpu"], default="cuda", help="of tests/gpu")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test marked gpu, which skips where it is absent."""
    name: str = request.config.getoption("--device")
    if name == "cuda":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device; --device cpu rehearses the tests of tests/gpu")
    return name


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of small real data sets; tests that ask for it skip where it is absent."""
    root = Path(os.environ.get("MOCO_DET_DATA", REPO.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no sample data at {root}; set MOCO_DET_DATA")
    return root
