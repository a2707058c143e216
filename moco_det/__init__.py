"""Detection transfer of self-supervised ResNets, honestly compared."""

from __future__ import annotations

__version__ = "0.1.0"
