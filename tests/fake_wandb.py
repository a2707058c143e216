"""Weights & Biases' client as far as it is used here, with what it was given."""

from __future__ import annotations

import sys
from typing import Any

import pytest


class FakeWandb:
    """In the place of the module, and of its run."""

    Error = ConnectionError

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = self.refuses = False

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
        fake = cls()
        monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
        return fake

    def init(self, **named: Any) -> FakeWandb:
        if self.refuses:
            raise self.Error("no key")
        self.begun = named
        return self

    def __enter__(self) -> FakeWandb:
        return self

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def __exit__(self, *error: object) -> None:
        self.finished = True
