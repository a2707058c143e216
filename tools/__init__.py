"""The command-line doors of the house: parse, call, write."""

from __future__ import annotations

import sys
from pathlib import Path

# `python tools/x.py` puts this folder first on the path, where pretrain.py would be found in
# place of the package of the same name. From here things are imported as moco_det_tools only.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [place for place in sys.path if not place or Path(place).resolve() != _HERE]
