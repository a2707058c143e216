"""The whole comparison, from images to the report; what is there already is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moco_det.foundation.atomic import write_text
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed, remove_partials
from moco_det.foundation.launching import cores
from moco_det.foundation.stopping import Stopped
from moco_det.foundation.strict_yaml import flatten, load_yaml
from moco_det.report import make_report
from moco_det.report.screen import screen_lines
from moco_det.runs.quickstart.encoders import (
    convert_encoders,
    encoder_jobs,
    encoder_name,
    notes,
    shipped_encoders,
)
from moco_det.runs.quickstart.plan import Budget, QuickstartPlan, remember
from moco_det.runs.suites.live import run_shown
from moco_det.runs.suites.matrix import Run, build_matrix, read_arms
from moco_det.runs.suites.processes import Job, Slot, run_side_by_side
from moco_det.runs.suites.runner import TRAIN
from moco_det.runs.suites.state import read_state
from moco_det.runs.suites.suite import SuiteSetting
from moco_det.settings import zoo
from moco_det.weights.architectures import detector_keys

# Processes of this size that one GPU is given at once.
PER_GPU = 3
STAGES = 5


def compare(
    prepare: Callable[[Path, Budget], QuickstartPlan],
    budget: Budget,
    output: Path,
    *,
    device: str,
    strict: bool,
    given: Mapping[str, Path],
) -> None:
    """Run what is not there yet, then make the report.

    `prepare` gives the data set, painted or one's own; with `strict` one broken image is an error.
    `given` are checkpoints by arm, in place of pre-training.
    """
    clock = Clock()
    clock.heading("data")
    with claimed(output, key="--output"):
        plan = prepare(output, budget)
        remove_partials(output / "weights")
        remember(plan, output)
        _compare(plan, output, clock, device=device, strict=strict, given=given)


def _compare(
    plan: QuickstartPlan,
    output: Path,
    clock: Clock,
    *,
    device: str,
    strict: bool,
    given: Mapping[str, Path],
) -> None:
    """`compare` from the plan on, in a folder that is claimed."""
    said: list[str] = []
    if given:
        clock.heading(f"pre-training: none, --weights gives {plan.architecture} checkpoints")
        checkpoints, curves = dict(given), []
    elif plan.unlabelled:
        beside = "; runs from random weights" if "random" in plan.budget.arms else ""
        clock.heading(f"pre-training, {plan.budget.pretrain_steps} steps each{beside}")
        jobs = encoder_jobs(plan, output, device=device, strict=strict)
        said = notes(plan, output)
        print("\n".join(said))
        others = jobs_without_encoder(plan, output, device=device)
        run_side_by_side([*jobs, *others], at_once=at_once(device))
        checkpoints = {job.name: job.folder / "checkpoint.pth" for job in jobs}
        curves = [job.folder for job in jobs]
    else:
        clock.heading("pre-training: done before, docs/demo.md says how; --pretrain does it again")
        checkpoints, curves = shipped_encoders(plan), []
    clock.heading("conversion, with proof")
    weights, warnings = convert_encoders(checkpoints, output)
    if not plan.test:
        for arm, file in weights.items():
            print(f"backbone of {checkpoints[arm]}: {file}")
        words = " ".join(f"{arm}={checkpoints[arm]}" for arm in weights)
        again = f"{command('quickstart')} --data LABELLED_DIR --weights {words}"
        print(f"fine-tuning and the report need labelled images; with them: {again}")
        return
    clock.heading(f"fine-tuning, {plan.budget.finetune_steps} steps each")
    results = fine_tune(plan, weights, output, device=device)
    clock.heading("report")
    write_report(results, output, curves, [*said, *warnings])
    print(f"done in {clock.passed()}")


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
        name, command = f"random_seed{run.seed}", [*TRAIN, *run.options(output)]
        jobs.append(Job(name, command, run.folder(output), run.setting.iterations))
    return jobs


def fine_tune(plan: QuickstartPlan, weights: dict[str, Path], output: Path, *, device: str) -> Path:
    """Run what has no row yet; returns the file of results. InputError where a run failed."""
    runs = build_runs(plan, weights, device=device)
    slots: list[Slot] = [()] * min(len(runs), at_once(device))
    outcome = run_shown(runs, output, slots)
    if outcome.signal:
        raise Stopped(outcome.signal)
    results = output / "results.jsonl"
    left = read_state(results, runs).left(runs)
    if left:
        why = (outcome.failed | outcome.stopped).get(left[0].name, "another process runs it")
        raise InputError(
            f"{len(left)} of {len(runs)} runs have no result, {left[0].name}: {why}; "
            "type the same command again to run what is left"
        )
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
    if plan.mask_format == "bitmask":
        base["INPUT.MASK_FORMAT"] = plan.mask_format
    if plan.architecture:
        base |= detector_keys(plan.architecture)
    runs: list[Run] = []
    for name, train in plan.train.items():
        pretrained = [arm for arm in plan.budget.arms if arm != "random"]
        words = [f"{arm}={weights[encoder_name(plan, arm, name)]}" for arm in pretrained]
        arms = read_arms(words, random="random" in plan.budget.arms, supervised=False)
        setting = SuiteSetting(name, {**base, "DATASETS.TRAIN": [train]})
        runs += build_matrix([setting], arms, plan.detector_seeds, engine="standalone")
    return runs


def write_report(results: Path, output: Path, curves: Sequence[Path], said: Sequence[str]) -> None:
    """report.html and report.md beside the results, and the verdict on the screen."""
    title = f"Transfer to detection: {output.name}"
    files = make_report([results], output, title=title, pretraining=curves, notes=said)
    print("\n".join(screen_lines(files["report.md"], files["tables.csv"])))
    for path in files.values():
        print(f"{path}   ({path.stat().st_size / 1024:.0f} KiB)")


class Clock:
    """Headings with the time that has passed."""

    def __init__(self) -> None:
        self.start, self.stage = time.monotonic(), 0

    def heading(self, text: str) -> None:
        """Announce the next stage."""
        self.stage += 1
        print(f"\n[{self.stage}/{STAGES}] {text}   ({self.passed()} so far)", flush=True)

    def passed(self) -> str:
        """Minutes and seconds since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        return f"{minutes}:{seconds:02d}"
