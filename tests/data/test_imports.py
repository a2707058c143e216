"""Reading data and scoring need no tensor library: a laptop can make a report again."""

from __future__ import annotations

import subprocess
import sys


def test_neither_package_imports_torch() -> None:
    code = (
        "import sys, moco_det.data, moco_det.data.scenes, moco_det.data.crops, moco_det.scoring; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'torchvision'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
