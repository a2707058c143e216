"""Images that do not open: named once each, and an error when they are too many."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_det.foundation.errors import InputError
from pretrain.jpeg import DAMAGED

logger = logging.getLogger(__name__)

# Fewer images than these say little about the share that is corrupt.
FIRST = 1000


@dataclass
class CorruptCount:
    """The images that did not open: named once each, and an error when they are too many.

    JPEGs that are damaged inside are named too, and used. `max_share` bounds the share of images
    that did not open among all `total`. Of the images seen so far, the share may be larger by three
    standard deviations of chance, so that a set half of which is damaged stops a run in its first
    batches.
    """

    total: int
    max_share: float = 0.0
    strict: bool = False
    names: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    seen: int = 0
    way_out: str = "fix or remove it, or set DATA.STRICT False to skip it"

    @property
    def limit(self) -> int:
        """How many may be corrupt among the images seen; among all where none was reported seen."""
        whole = max(1, int(self.max_share * self.total)) if self.max_share > 0 else 0
        whole = min(whole, self.total - 1)  # one must remain
        if self.seen == 0 or self.seen >= self.total:
            return whole
        expected = self.max_share * max(self.seen, FIRST)
        return min(whole, max(1, int(expected + 3 * math.sqrt(expected))))

    def state(self) -> dict[str, Any]:
        """What a continued run has to know."""
        return {"names": sorted(self.names), "seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; images that were counted since stay counted."""
        self.names |= set(state["names"])
        self.seen = max(self.seen, int(state["seen"]))

    def saw(self, images: int) -> None:
        """So many more images were asked for, whether they opened or not."""
        self.seen += images

    def add(self, path: str, reason: str) -> None:
        """Count and name one image; raises InputError where it is one too many."""
        if reason == DAMAGED and path not in self.damaged:
            self.damaged.add(path)
            logger.warning("image %s: %s", path, reason)
        if reason == DAMAGED or path in self.names:
            return
        self.names.add(path)
        if self.strict:
            raise InputError(f"image {path}: {reason}; {self.way_out}")
        among = f"{self.total}"
        if 0 < self.seen < self.total:
            among = f"the first {self.seen}"
        if len(self.names) > self.limit:
            raise InputError(
                f"{len(self.names)} of {among} images do not open, more than DATA.MAX_CORRUPT "
                f"{self.max_share:g} allows; the last is {path}: {reason}"
            )
        logger.warning(
            "skipped image %s: %s (%d of %s so far)", path, reason, len(self.names), among
        )
