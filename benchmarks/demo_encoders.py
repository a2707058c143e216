"""Makes the encoders that ship with the demo: moco_det/runs/quickstart/checkpoints/*.pth.

    python benchmarks/demo_encoders.py [-o runs/demo_encoders]

Paints seed 11's close-ups and labelled scenes, pre-trains both encoders for 2,500 steps, and keeps
what a converter needs of each checkpoint in half precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from moco_det.foundation.checkpoints import save_checkpoint
from moco_det.runs.quickstart.data_sets import painted_data
from moco_det.runs.quickstart.encoders import SHIPPED, encoder_jobs
from moco_det.runs.quickstart.flow import at_once
from moco_det.runs.quickstart.plan import Budget
from moco_det.runs.suites.processes import run_side_by_side
from moco_det_tools.entry import run
from pretrain import checkpoints

BUDGET = Budget(
    arms=("supervised", "moco"), seed=11, seeds=1, pretrain_steps=2500, finetune_steps=1
)


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train what is not there yet, then write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo_encoders"))
    output = parser.parse_args(argv).output.resolve()
    plan = painted_data(output, BUDGET, labels=[], pretrain=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = encoder_jobs(plan, output, device=device, strict=True)
    run_side_by_side(jobs, at_once=at_once(device))
    for job in jobs:
        whole = checkpoints.read(job.folder / checkpoints.FINAL)
        kept = {key: whole[key] for key in ("format", "method", "arch", "versions", "input")}
        encoder = {
            name: value.half() if value.is_floating_point() else value
            for name, value in whole["encoder"].items()
        }
        save_checkpoint({**kept, "encoder": encoder}, SHIPPED / f"{job.name}.pth")
        print(SHIPPED / f"{job.name}.pth")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
