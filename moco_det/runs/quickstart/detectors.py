"""The runs of a quickstart: every arm in every setting with every seed, side by side."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from moco_det import __version__
from moco_det.settings.config import flatten, load_yaml
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart.encoders import encoder_name
from moco_det.runs.quickstart.plan import Plan
from moco_det.runs.suites import Run, Setting, build_matrix, read_arms, read_state, run_matrix
from moco_det.runs.suites.live import LiveTable
from moco_det.runs.suites.side_by_side import Job, cores

# Processes of this size that one GPU is given at once.
PER_GPU = 3
TRAIN = [sys.executable, "-m", "moco_det_tools.train_net"]


def at_once(device: str) -> int:
    """Processes side by side: one per core, or a few on one GPU."""
    return PER_GPU if device == "cuda" else cores()


def jobs_without_encoder(plan: Plan, output: Path, configs: Path, *, device: str) -> list[Job]:
    """The runs from random weights that have no row yet, for cores that no encoder needs."""
    if "random" not in plan.budget.arms:
        return []
    random = replace(plan, budget=replace(plan.budget, arms=("random",)))
    runs = build_runs(random, {}, configs, device=device)
    left = read_state(output / "results.jsonl", runs).left(runs)
    for run in left:
        write_text(run.config_file(output), run.setting.text)
    return [
        Job(
            f"{run.arm.name}_seed{run.seed}",
            [*TRAIN, *run.options(output)],
            run.folder(output),
            run.setting.iterations,
        )
        for run in left
    ]


def fine_tune(
    plan: Plan, weights: dict[str, Path], output: Path, configs: Path, *, device: str
) -> Path:
    """Run what has no row yet; returns the file of results. InputError where a run failed."""
    runs = build_runs(plan, weights, configs, device=device)
    slots: list[tuple[str, ...]] = [()] * min(len(runs), at_once(device))
    table = LiveTable(runs, output, at_once=len(slots))
    outcome = run_matrix(
        runs,
        output,
        train_command=TRAIN,
        slots=slots,
        watch=table.watch,
    )
    table.draw((), outcome)
    if outcome.stopped:
        raise KeyboardInterrupt
    results = output / "results.jsonl"
    left = read_state(results, runs).left(runs)
    if left:
        why = outcome.failed.get(left[0].name, "another process runs it")
        raise InputError(f"{len(left)} of {len(runs)} runs have no result, {left[0].name}: {why}")
    return results


def build_runs(plan: Plan, weights: dict[str, Path], configs: Path, *, device: str) -> list[Run]:
    """The matrix, seed by seed within a setting; all runs of a setting differ in weights alone."""
    steps = plan.budget.finetune_steps
    base = {
        **flatten(load_yaml(configs / plan.detector)),
        "DATASETS.TEST": [plan.test],
        "MODEL.DEVICE": device,
        "MODEL.MASK_ON": plan.masks,
        "MODEL.ROI_HEADS.NUM_CLASSES": plan.classes,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": [max(1, steps * 3 // 4), max(1, steps * 9 // 10)],
        "SOLVER.WARMUP_ITERS": max(1, steps * 3 // 20),
    }
    runs: list[Run] = []
    for name, train in plan.train.items():
        files = {
            arm: weights[encoder_name(plan, arm, name)]
            for arm in plan.budget.arms
            if arm != "random"
        }
        arms = read_arms(
            [f"{arm}={file}" for arm, file in files.items()],
            random="random" in plan.budget.arms,
            supervised=False,
        )
        setting = Setting(name, {**base, "DATASETS.TRAIN": [train]})
        runs += build_matrix(
            [setting], arms, plan.detector_seeds, engine="standalone", version=__version__
        )
    return runs
