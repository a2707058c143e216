"""Seconds of training until an encoder has the kNN accuracy of a config's KNN.GOAL, over seeds.

    python benchmarks/speedrun.py --config-file configs/pretrain/speedrun/caltech101_r18.yaml \\
        --trials 3 DATA.PATH train KNN.TRAIN train KNN.TEST test
    ... --variant "SOLVER.EPOCHS 60" --variant "SOLVER.BATCH 512 SOLVER.LR 0.24" DATA.PATH ...

A trial is a run of tools/pretrain.py with its own seed, in this process. Its seconds go from the
first batch that is asked for to the end of the step after which the goal is found to be reached:
with it what a run does once (choosing convolutions, capturing its graph), without reading the
images, building the networks, and measuring neighbours. Before the trials a run of a few steps
warms the process up and is not counted. Each `--variant` is the config with other keys. A line per
measurement and per trial is printed; OUTPUT/trials.jsonl has a row per trial.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moco_det.foundation.errors import InputError
from moco_det.report.statistics import summarise
from moco_det_tools.entry import run
from pretrain.config import load_config
from pretrain.train import train

WARM_UP = 10  # steps


@dataclass(frozen=True)
class Trial:
    """One run: what it reached, when, and `curve`, a (iteration, seconds, accuracy) per watch."""

    variant: str  # keys that differ from the config
    seed: int
    goal: float
    reached: bool
    iterations: int
    epochs: float
    seconds: float
    accuracy: float
    images_per_second: float
    curve: list[tuple[int, float, float]]


def read_trial(records: Sequence[dict[str, Any]], *, batch: int, **named: Any) -> Trial:
    """A trial from its run's records; every watched step is a logged one."""
    seconds, done, curve = 0.0, 0, []
    for record in records:
        if "images_per_second" in record:
            seconds += (record["iteration"] - done) * batch / record["images_per_second"]
            done = record["iteration"]
        elif record["iteration"]:
            curve.append((done, round(seconds, 2), record["knn_accuracy"]))
    accuracy = curve[-1][2]
    return Trial(
        **named,
        reached=accuracy >= named["goal"],
        iterations=done,
        epochs=records[-1]["epoch"],
        seconds=round(seconds, 2),
        accuracy=accuracy,
        images_per_second=round(done * batch / seconds, 1),
        curve=curve,
    )


def try_once(config: str, variant: str, seed: int, output: Path, pairs: Sequence[str]) -> Trial:
    """One run from nothing; what it leaves are its records and checkpoint."""
    words = [*pairs, *shlex.split(variant), "SEED", str(seed), "OUTPUT_DIR", str(output)]
    cfg = load_config(config, words)
    text = (train(cfg).parent / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    named = {"variant": variant, "seed": seed, "goal": cfg.KNN.GOAL}
    return read_trial(records, batch=cfg.SOLVER.BATCH, **named)


def warm_up(config: str, output: Path, pairs: Sequence[str]) -> None:
    """A few steps, and one measurement of neighbours, that leave nothing behind."""
    few = ["SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", str(WARM_UP), "KNN.GOAL", "0"]
    train(load_config(config, [*pairs, *few, "OUTPUT_DIR", str(output)]))
    shutil.rmtree(output)


def summary(trials: Sequence[Trial]) -> str:
    """Mean accuracy at the end, and mean and standard deviation of the seconds to the goal."""
    end = summarise(trial.accuracy for trial in trials).mean
    line = f"{end:.1f} % at the end"
    if not trials[0].goal:
        return line
    reached = [trial.seconds for trial in trials if trial.reached]
    line += f"; {len(reached)} of {len(trials)} trials reached {trials[0].goal:g} %"
    if not reached:
        return line
    found = summarise(reached)
    return f"{line} in {found.mean:.1f}{'' if found.std is None else f' ± {found.std:.1f}'} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all trials, print and keep what came of them."""
    p = argparse.ArgumentParser(description="Seconds to a kNN accuracy, over seeds.")
    p.add_argument("--config-file", required=True, metavar="FILE")
    p.add_argument("--trials", type=int, default=3, help="seeds 0 to TRIALS - 1 of each variant")
    p.add_argument("--variant", action="append", metavar="'KEY VALUE ...'", help="may be repeated")
    p.add_argument("-o", "--output", type=Path, default=Path("runs/speedrun"))
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    args = p.parse_args(argv)
    if taken := sorted(args.output.glob("variant*_seed*")):
        raise InputError(f"{taken[0]} holds a trial already: remove it or name another -o")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"torch {torch.__version__}, {where}", flush=True)
    warm_up(args.config_file, args.output / "warm_up", args.opts)
    summaries = []
    for number, variant in enumerate(args.variant or [""]):
        trials = []
        for seed in range(args.trials):
            folder = args.output / f"variant{number}_seed{seed}"
            trial = try_once(args.config_file, variant, seed, folder, args.opts)
            trials.append(trial)
            with open(args.output / "trials.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
            for iteration, seconds, accuracy in trial.curve:
                print(f"  iteration {iteration}: {seconds:.1f} s, {accuracy:.1f} %")
            print(
                f"[{variant}] seed {seed}: {trial.accuracy:.1f} % after {trial.epochs:g} epochs, "
                f"{trial.seconds:.1f} s at {trial.images_per_second:,.0f} images/s",
                flush=True,
            )
        summaries.append(f"[{variant}] {summary(trials)}")
    print("\n".join(summaries))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
