"""The runs of a quickstart: every arm in every setting with every seed, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import cores
from moco_det.foundation.strict_yaml import flatten, load_yaml
from moco_det.runs.quickstart.encoders import encoder_name
from moco_det.runs.quickstart.plan import QuickstartPlan
from moco_det.runs.suites.matrix import Run, build_matrix, read_arms
from moco_det.runs.suites.processes import Job, Slot
from moco_det.runs.suites.runner import TRAIN
from moco_det.runs.suites.shown import run_shown
from moco_det.runs.suites.state import read_state
from moco_det.runs.suites.suite import SuiteSetting
from moco_det.settings import zoo

# Processes of this size that one GPU is given at once.
PER_GPU = 3


def at_once(device: str) -> int:
    """Processes side by side: one per core, or a few on one GPU."""
    return PER_GPU if device == "cuda" else cores()


def jobs_without_encoder(plan: QuickstartPlan, output: Path, *, device: str) -> list[Job]:
    """The runs from random weights that have no row yet, for cores that no encoder needs."""
    if "random" not in plan.budget.arms:
        return []
    random = replace(plan, budget=replace(plan.budget, arms=("random",)))
    runs = build_runs(random, {}, device=device)
    jobs = []
    for run in read_state(output / "results.jsonl", runs).left(runs):
        write_text(run.config_file(output), run.setting.text)
        command = [*TRAIN, *run.options(output)]
        name = f"{run.arm.name}_seed{run.seed}"
        jobs.append(Job(name, command, run.folder(output), run.setting.iterations))
    return jobs


def fine_tune(plan: QuickstartPlan, weights: dict[str, Path], output: Path, *, device: str) -> Path:
    """Run what has no row yet; returns the file of results. InputError where a run failed."""
    runs = build_runs(plan, weights, device=device)
    slots: list[Slot] = [()] * min(len(runs), at_once(device))
    outcome = run_shown(runs, output, slots)
    if outcome.stopped:
        raise KeyboardInterrupt
    results = output / "results.jsonl"
    left = read_state(results, runs).left(runs)
    if left:
        why = outcome.failed.get(left[0].name, "another process runs it")
        raise InputError(f"{len(left)} of {len(runs)} runs have no result, {left[0].name}: {why}")
    return results


def build_runs(plan: QuickstartPlan, weights: dict[str, Path], *, device: str) -> list[Run]:
    """The matrix, seed by seed within a setting; all runs of a setting differ in weights alone."""
    steps = plan.budget.finetune_steps
    base = {
        **flatten(load_yaml(zoo.get_config_file(plan.detector))),
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
        arms = read_arms(
            [
                f"{arm}={weights[encoder_name(plan, arm, name)]}"
                for arm in plan.budget.arms
                if arm != "random"
            ],
            random="random" in plan.budget.arms,
            supervised=False,
        )
        setting = SuiteSetting(name, {**base, "DATASETS.TRAIN": [train]})
        runs += build_matrix([setting], arms, plan.detector_seeds, engine="standalone")
    return runs
