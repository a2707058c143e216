"""Say what a pre-training run needs before it starts: tools/plan.py --images N --gpus G ..."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = argparse.ArgumentParser(
        prog="plan",
        description="Memory, iterations, time and disk of a pre-training run; exit code 2 where it "
        "cannot fit.",
    )
    p.add_argument("--config-file", metavar="FILE", help="configs/pretrain/*.yaml (or defaults)")
    p.add_argument("--images", type=int, required=True, help="in the data set; 1e9 is no trouble")
    p.add_argument("--gpus", type=int, required=True, help="one process each; 0 is one on the CPU")
    p.add_argument("--memory", type=float, metavar="GIB", help="of a GPU (default: the one here, "
                   "else 16, the papers' V100) or of the machine (--gpus 0)")  # fmt: skip
    p.add_argument("--host-memory", type=float, metavar="GIB", help="for a process beside its GPU")
    p.add_argument("--classes", type=int, default=1000, help="of the supervised arm (default 1000)")
    timing = p.add_mutually_exclusive_group()
    timing.add_argument("--rate", type=float, metavar="IMAGES_PER_SECOND", help="of one process")
    timing.add_argument(
        "--measure", action="store_true", help="measure the rate here, on the device DEVICE picks"
    )
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, plan, print, refuse."""
    args = parser().parse_args(argv)
    if args.gpus < 0:
        raise InputError(f"--gpus {args.gpus}: it must be 0 or more")
    sizes = {"rate": args.rate, "memory": args.memory, "host-memory": args.host_memory}
    for name, value in sizes.items():
        if value is not None and not value > 0:
            raise InputError(f"--{name} {value:g}: it must be above 0")
    from pretrain.config import load_config
    from pretrain.plan import make_plan, measured_rate

    opts = list(args.opts)
    if args.config_file is None and not any(key.startswith("SOLVER.") for key in opts[::2]):
        opts += ["SOLVER.EPOCHS", "200"]
    cfg = load_config(args.config_file, opts)
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
