"""All formats, one row of rules each.

The version of the project that a row was read from is in docs/weights.md.
"""

from __future__ import annotations

from moco_det.weights.formats.detectron import DETECTRON
from moco_det.weights.formats.libraries import LIBRARIES, LIGHTLY, SUPERVISED
from moco_det.weights.formats.papers import MOCO, PAPERS
from moco_det.weights.formats.row import Format

FORMATS: tuple[Format, ...] = (
    *MOCO,
    *PAPERS,
    *LIBRARIES,
    *LIGHTLY,
    *SUPERVISED,
    *DETECTRON,
)
BY_NAME: dict[str, Format] = {row.name: row for row in FORMATS}
