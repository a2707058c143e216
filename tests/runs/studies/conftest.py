"""What the tests of studies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moco_det_tools.probe import parser
from pretrain.probe.options import read_options


def read_probe(words: Sequence[str]) -> Any:
    """The options of a protocol as `moco-det probe` reads them."""
    return read_options(vars(parser().parse_args(words)))[0]
