"""Say what is installed, whether it works together, and the cure for what does not."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from moco_det.doctor import FAULT, examine
from moco_det_tools.entry import make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("doctor", __doc__, example="--datasets /data")
    p.add_argument(
        "--datasets",
        metavar="DIR",
        help="folder of the data sets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; 0, or 1 where there is a fault."""
    args = parser().parse_args(argv)
    if args.datasets:
        os.environ["DETECTRON2_DATASETS"] = args.datasets
    faults = 0
    for finding in examine():
        faults += finding.level == FAULT
        print("\n".join(finding.lines()), flush=True)
    print(f"\n{faults} fault(s)" if faults else "\nno faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
