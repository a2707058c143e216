"""The commands: they parse, call and write."""

from __future__ import annotations

import sys
from pathlib import Path

# `python tools/x.py` puts this folder first on the path, where pretrain.py would be found in
# place of the package of the same name. From here things are imported as moco_det_tools only.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [place for place in sys.path if not place or Path(place).resolve() != _HERE]

# Two checkouts and one environment: the script would be one's and everything it calls the other's.
_SCRIPT = Path(getattr(sys.modules["__main__"], "__file__", None) or __file__).resolve()
if _SCRIPT.parent != _HERE and {"entry.py", "pretrain.py", _SCRIPT.name} <= {
    file.name for file in _SCRIPT.parent.glob("*.py")
}:
    print(
        f"error: {_SCRIPT} is a script of another checkout than the one installed here, "
        f"{_HERE}; call that one's as moco-det, or install this one: "
        f"{sys.executable} -m pip install -e {_SCRIPT.parent.parent}",
        file=sys.stderr,
    )
    raise SystemExit(2)
