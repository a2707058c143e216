"""Runs the whole comparison: every initialisation in every setting of a suite with every seed.

tools/benchmark.py --suite quick --weights moco=moco.pkl supervised=sup.pkl --seeds 3 \\
    --data "voc://DIR?split=train" "voc://DIR?split=test" -o runs/quick
"""

from __future__ import annotations

import argparse
import ast
import importlib.resources
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.runs.engines import choose_engine
from moco_det.settings.engine import ENGINES
from moco_det_tools.entry import run

SUITES = Path(str(importlib.resources.files("moco_det_configs"))) / "suites"


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = argparse.ArgumentParser(
        prog="benchmark",
        # --slurm takes its own options out of the command line, and must know their names
        allow_abbrev=False,
        description="Run initialisations x settings x seeds and keep their report up to date. "
        "The same command goes on where it stopped; a finished run is never run again.",
    )
    p.add_argument("--suite", required=True, metavar="NAME|FILE", help="voc, coco, quick or a yaml")
    p.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="arms on trial")
    p.add_argument("--seeds", metavar="N|LIST", help="how many, or which: 5, or 0,3,7")
    p.add_argument("--engine", choices=ENGINES, default="auto", help="auto: detectron2 if it is")
    p.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: runs/SUITE")
    p.add_argument("--data", nargs=2, metavar=("TRAIN", "TEST"), help="voc://... or coco://...")
    p.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="of all runs"
    )
    p.add_argument("--no-random", action="store_true", help="leave out the random arm")
    p.add_argument("--no-supervised", action="store_true", help="leave out the supervised arm")
    p.add_argument("--gpus", metavar="LIST", help="GPUs to use, one run on each: 0,1,2,3")
    p.add_argument("--gpus-per-run", type=int, default=1, metavar="N", help="GPUs of one run")
    p.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side on the CPU, whose cores they share, or on each group of GPUs",
    )
    p.add_argument("--dry-run", action="store_true", help="show the matrix and its cost only")
    p.add_argument(
        "--slurm", action="store_true", help="write a job array, run nothing; CPU without --gpus"
    )
    p.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of the job: --time=8:00:00"
    )
    p.add_argument("--only", metavar="RUN", help="this run alone (a task of the job array)")
    p.add_argument("--no-report", action="store_true", help="do not make the report")
    p.add_argument("--title", help="the report's heading")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; 0 if every run is finished, 1 if one failed or is left, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    # Imported here so that --help does not wait.
    from moco_det.runs import suites

    choice = choose_engine(args.engine)
    engine = choice.engine
    if choice.broken:
        print(f"--engine auto takes standalone: {choice.reason}")
    suite = suites.read_suite(find_suite(args.suite), changes(args))
    output = args.output or Path("runs") / suite.name
    arms = suites.read_arms(
        args.weights,
        random=not args.no_random,
        supervised=not args.no_supervised,
        default_supervised=suite.supervised,
    )
    suites.check_architectures(suite.settings, arms)
    check_data(suite.settings)
    if engine == "standalone":
        check_settings(suite.settings)
    every = suites.build_matrix(
        suite.settings,
        arms,
        read_seeds(args.seeds, suite.seeds),
        engine=engine,
        version=version_of_engine(engine),
    )
    runs = chosen(every, args.only)
    slots = read_slots(args.gpus, args.gpus_per_run, args.at_once)
    state = suites.read_state(output / "results.jsonl", runs)
    show_cost(runs, state, output, engine=engine, at_once=len(slots), commands=args.dry_run)
    if args.dry_run:
        return 0
    if args.slurm:
        gpus = args.gpus_per_run if args.gpus else 0
        script = suites.write_job_array(
            state.left(runs),
            output,
            command=[sys.executable, *own_command(given, engine=engine)],
            gpus=gpus,
            directives=args.sbatch,
        )
        where = f"{gpus} GPU(s) a task" if gpus else "on the CPU; --gpus asks for GPUs"
        print(f"submit it with: sbatch {script}  ({where})")
        print(f"then see them with: moco-det report {output} -o {output}")
        return 0
    return run_all(args, runs, output, slots)


def run_all(
    args: argparse.Namespace, runs: Sequence[Any], output: Path, slots: list[tuple[str, ...]]
) -> int:
    """Run, show, report; the exit code."""
    from moco_det.runs.suites import run_matrix
    from moco_det.runs.suites.live import LiveTable
    from moco_det.runs.suites.state import read_state

    table = LiveTable(runs, output, at_once=len(slots))

    def report() -> None:
        if not args.no_report:
            make_report(output, args.title)

    outcome = run_matrix(
        runs,
        output,
        train_command=[sys.executable, "-m", "moco_det_tools.train_net"],
        slots=slots,
        watch=table.watch,
        on_row=report,
    )
    table.draw((), outcome)
    report()
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for path in (output / "report.html", output / "report.md"):
        if path.is_file() and not args.no_report:
            print(f"{path}  {path.stat().st_size / 1024:,.0f} KiB")
    return 1 if read_state(output / "results.jsonl", runs).left(runs) else 0


def make_report(output: Path, title: str | None) -> None:
    """The report of the rows so far; what is wrong with it does not stop the runs."""
    from moco_det.report import make_report as write_report
    from moco_det.results import read_rows

    results = output / "results.jsonl"
    if not results.is_file() or not any(row.finished for row in read_rows([results]).rows):
        return
    try:
        write_report([results], output, title=title)
    except InputError as error:
        print(f"the report was not updated: {error}", file=sys.stderr)
    except Exception:
        # A fault of the report keeps its traceback, and must not end a night of training.
        traceback.print_exc()
        print("the report was not updated; the runs go on", file=sys.stderr)


def find_suite(name: str) -> Path:
    """A suite by its name in configs/suites or by its path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    path = SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yaml")))
        raise InputError(f"--suite {name}: no such suite; there are {known}, or name a yaml file")
    return path


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The config keys that the command line gives every run."""
    found: dict[str, Any] = {}
    # The machine that writes a job array is not the one that runs it: what it has decides nothing.
    if not args.gpus and (args.slurm or not has_cuda()):
        found["MODEL.DEVICE"] = "cpu"
    if args.data:
        from moco_det.data import load_datasets

        train, test = args.data
        data = load_datasets([train])
        found |= {"DATASETS.TRAIN": [train], "DATASETS.TEST": [test]}
        found["MODEL.ROI_HEADS.NUM_CLASSES"] = len(data.classes)
        if not data.has_masks:
            found["MODEL.MASK_ON"] = False
    for key, text in args.set:
        found[key] = parsed(text)
    return found


def has_cuda() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def parsed(text: str) -> Any:
    """A value as config files read it: a literal, else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def check_data(settings: Sequence[Any]) -> None:
    """InputError, before the first run, for a setting that leaves its data to the caller."""
    for setting in settings:
        if not all(setting.keys.get(f"DATASETS.{part}") for part in ("TRAIN", "TEST")):
            raise InputError(f"the setting {setting.name} names no data: give --data TRAIN TEST")


def check_settings(settings: Sequence[Any]) -> None:
    """InputError, before the first run, for a config that the standalone engine would refuse."""
    from moco_det.settings.config import check, get_cfg, merge

    for setting in settings:
        cfg = get_cfg()
        merge(cfg, setting.tree, source=f"the suite's setting {setting.name}")
        check(cfg)


def read_seeds(given: str | None, default: int) -> list[int]:
    """ "5" is the seeds 0 to 4, "0,3,7" are these."""
    text = str(default) if given is None else given
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text!r}: write how many, 5, or which, 0,3,7") from None
    seeds = list(range(numbers[0])) if "," not in text else numbers
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds {text!r}: write how many, 5, or which, 0,3,7, none twice")
    return seeds


def read_slots(gpus: str | None, per_run: int, at_once: int) -> list[tuple[str, ...]]:
    """The groups of GPUs that runs are given, each `at_once` times; empty ones without GPUs."""
    for option, value in (("--gpus-per-run", per_run), ("--at-once", at_once)):
        if value < 1:
            raise InputError(f"{option} {value}: at least 1")
    if gpus is None:
        return [()] * at_once
    names = [part.strip() for part in gpus.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"--gpus {gpus!r}: write each GPU once, 0,1,2,3")
    if len(names) % per_run:
        raise InputError(f"--gpus {gpus}: {len(names)} GPUs do not divide into groups of {per_run}")
    return [tuple(names[i : i + per_run]) for i in range(0, len(names), per_run)] * at_once


def version_of_engine(engine: str) -> str:
    """The version that keys the runs; of detectron2 what its installation says, if anything."""
    from moco_det import __version__
    from moco_det.runs.row import version_of

    return __version__ if engine == "standalone" else version_of("detectron2")


def chosen(runs: list[Any], only: str | None) -> list[Any]:
    """All runs, or the one that --only names."""
    if only is None:
        return runs
    found = [run for run in runs if run.name == only]
    if not found:
        raise InputError(
            f"--only {only}: no such run in this matrix; its weights, config or engine have "
            "changed since the list was written"
        )
    return found


# Options that a task of a job array is not given, with the number of words that follow them.
NOT_A_TASK_S: dict[str, int] = {
    "--slurm": 0,
    "--sbatch": 1,
    "--gpus": 1,
    "--at-once": 1,
    "--engine": 1,
}


def own_command(given: Sequence[str], *, engine: str) -> list[str]:
    """This call for a task of the job array: what the batch system decides is left out.

    The engine is the one found here. A task without GPUs is told so, since a machine with GPUs
    would make another config of it, and so another run.
    """
    words: list[str] = []
    skip = 0
    gpus = False
    for word in given:
        name = word.split("=")[0]
        gpus |= name == "--gpus"
        if skip:
            skip -= 1
        elif name in NOT_A_TASK_S:
            skip = 0 if "=" in word else NOT_A_TASK_S[name]
        else:
            words.append(word)
    device = [] if gpus else ["--set", "MODEL.DEVICE", "cpu"]
    if "MODEL.DEVICE" in words:
        device = []
    return ["-m", "moco_det_tools.benchmark", *words, *device, "--engine", engine]


def show_cost(
    runs: Sequence[Any], state: Any, output: Path, *, engine: str, at_once: int, commands: bool
) -> None:
    """The matrix and its cost, before anything runs."""
    from moco_det.runs.suites.live import table_lines, time_left_line
    from moco_det.runs.suites.runner import Outcome

    print(f"{len(runs)} runs on {engine}, {at_once} at a time, into {output}")
    print("\n".join(table_lines(runs, state, {}, Outcome())))
    print(time_left_line(runs, state, at_once=at_once))
    for problem in state.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if commands:
        for one in state.left(runs):
            options = shlex.join(one.options(output))
            print(f"python tools/train_net.py {options}")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(run(main))
