"""The whole comparison, from images to the report; what is there already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from moco_det.report import make_report
from moco_det.report.screen import screen_lines
from moco_det.runs.quickstart.detectors import at_once, fine_tune, jobs_without_encoder
from moco_det.runs.quickstart.encoders import convert_encoders, encoder_jobs, shipped_encoders
from moco_det.runs.quickstart.plan import Budget, QuickstartPlan, remember
from moco_det.runs.suites.side_by_side import run_side_by_side

STAGES = 5


def compare(
    prepare: Callable[[Path, Budget], QuickstartPlan],
    budget: Budget,
    output: Path,
    *,
    device: str,
    strict: bool,
) -> None:
    """Run what is not there yet, then make the report.

    `prepare` gives the data set, painted or one's own; with `strict` one broken image is an error.
    """
    clock = Clock()
    clock.heading("data")
    plan = prepare(output, budget)
    remember(plan, output)
    if plan.unlabelled:
        clock.heading(f"pre-training, {budget.pretrain_steps} steps each; runs from random weights")
        jobs = encoder_jobs(plan, output, device=device, strict=strict)
        others = jobs_without_encoder(plan, output, device=device)
        run_side_by_side([*jobs, *others], at_once=at_once(device))
        checkpoints = {job.name: job.folder / "checkpoint.pth" for job in jobs}
        curves = [job.folder for job in jobs]
    else:
        clock.heading("pre-training: done before, docs/demo.md says how; --pretrain does it again")
        checkpoints, curves = shipped_encoders(plan), []
    clock.heading("conversion, with proof")
    weights = convert_encoders(checkpoints, output)
    clock.heading(f"fine-tuning, {budget.finetune_steps} steps each")
    results = fine_tune(plan, weights, output, device=device)
    clock.heading("report")
    write_report(results, output, curves)
    print(f"done in {clock.passed()}")


def write_report(results: Path, output: Path, curves: Sequence[Path]) -> None:
    """report.html and report.md beside the results, and the verdict on the screen."""
    title = f"Transfer to detection: {output.name}"
    files = make_report([results], output, title=title, pretraining=curves)
    print("\n".join(screen_lines(files["report.md"], files["tables.csv"])))
    for path in files.values():
        print(f"{path}   ({path.stat().st_size / 1024:.0f} KiB)")


class Clock:
    """Headings with the time that has passed."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.stage = 0

    def heading(self, text: str) -> None:
        """Announce the next stage."""
        self.stage += 1
        print(f"\n[{self.stage}/{STAGES}] {text}   ({self.passed()} so far)", flush=True)

    def passed(self) -> str:
        """Minutes and seconds since the start."""
        seconds = int(time.monotonic() - self.start)
        return f"{seconds // 60}:{seconds % 60:02d}"
