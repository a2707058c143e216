"""Write the matrix of detection configs into a folder: one yaml per table and arm."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from moco_det.settings.zoo.matrix import write
from moco_det_tools.entry import make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("make-configs", __doc__, example="configs")
    p.add_argument("folder", type=Path, help="a file there of the same name is replaced")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and name those that changed."""
    args = parser().parse_args(argv)
    changed = write(args.folder)
    for path in changed:
        print(path)
    print(f"{len(changed)} file(s) written, the others are as they were")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
