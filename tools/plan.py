"""Say what memory, iterations, time and disk a pre-training run needs before it starts.

Exit code 2 where it cannot fit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from moco_det.foundation.errors import InputError
from moco_det.settings.zoo import PRETRAINING, find_config
from moco_det_tools.entry import at_least, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser(
        "plan", __doc__, example="--config-file moco_v2_r50_in1m_200ep --images 1281167 --gpus 8"
    )
    add = p.add_argument
    add(
        "--config-file",
        metavar="FILE|NAME",
        help="a yaml file or a zoo's name (default: the keys' own defaults)",
    )
    count = partial(add, required=True, metavar="N")
    count("--images", type=at_least(0, 10**15), help="in the data set; 1e9 is no trouble")
    count("--gpus", type=at_least(0), help="one process each; 0 is the CPU")
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="of a GPU (default: the one here, else 16, the papers' V100), or with --gpus 0 of the "
        "machine (default: this one)",
    )
    add(
        "--host-memory",
        type=float,
        metavar="GIB",
        help="for a process beside its GPU (default: not checked)",
    )
    add("--classes", type=at_least(1), default=1000, metavar="N", help="of the supervised arm")
    timing = p.add_mutually_exclusive_group()
    timing.add_argument(
        "--rate",
        type=float,
        metavar="IMAGES_PER_SECOND",
        help="of one process (default: no time is planned)",
    )
    timing.add_argument(
        "--measure", action="store_true", help="measure the rate here, on the device DEVICE picks"
    )
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys over the file's")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, plan, print, refuse."""
    args = parser().parse_args(argv)
    sizes = {"rate": args.rate, "memory": args.memory, "host-memory": args.host_memory}
    for name, value in sizes.items():
        if value is not None and not value > 0:
            raise InputError(f"--{name} {value:g}: it must be above 0")
    from pretrain.config import load_config
    from pretrain.plan import make_plan, measured_rate

    opts = list(args.opts)
    if args.config_file is None and not any(key.startswith("SOLVER.") for key in opts[::2]):
        opts += ["SOLVER.EPOCHS", "200"]
    named = args.config_file
    config_file = find_config(named, patterns=PRETRAINING) if named else None
    cfg = load_config(config_file, opts)
    plan = make_plan(
        cfg,
        images=args.images,
        gpus=args.gpus,
        rate=measured_rate(cfg) if args.measure else args.rate,
        measured=args.measure,
        classes=args.classes,
    )
    print("\n".join(plan.lines()))
    sys.stdout.flush()
    memory = args.memory or default_memory(args.gpus)
    plan.refuse_what_cannot_fit(memory=memory, host_memory=args.host_memory)
    print(f"fits: {memory:g} GiB per process")
    return 0


def default_memory(gpus: int) -> float:
    """GiB of the first GPU here, of the papers' where there is none, or of this machine."""
    import torch

    if gpus == 0:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return 16.0


if __name__ == "__main__":
    raise SystemExit(run(main))
