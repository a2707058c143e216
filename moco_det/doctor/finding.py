"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, FAULT = "ok", "note", "FAULT"


@dataclass(frozen=True)
class Finding:
    """``level`` is OK, NOTE (absent, and nothing here needs it) or FAULT; a FAULT has a cure."""

    level: str
    what: str
    cure: str = ""

    def lines(self) -> list[str]:
        """The finding and, indented under it, its cure."""
        lines = [f"{self.level:<5}  {self.what}"]
        return [*lines, f"       cure: {self.cure}"] if self.cure else lines
