"""The tests marked gpu, then every benchmark that runs on a GPU, and one table of both.

    python benchmarks/gpu.py [-o runs/gpu] [--minutes 8] [--skip-tests]

This is what `make gpu` runs; the python of any environment with the packages serves. Each part is
a process of its own and says what it does; one that fails or has no time left is named in the
table, and the exit code is then 1. OUTPUT/table.md is written anew after each part, so that a run
that is cut off leaves what it has measured. detectron2's parts need it on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from rows import table
from tqdm import tqdm

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run

HERE = Path(__file__).resolve().parent
R50 = ["--arch", "resnet50", "--size", "224", "--batch", "128"]
R18 = ["--arch", "resnet18", "--size", "64", "--batch", "256"]
SHORT = ["--rounds", "3", "--seconds", "1.5"]
STEPS = ["--size", "800", "--rounds", "9", "--warm-up", "4"]
LOADER = ["--loader", "--workers", "6", "--precision", "bfloat16"]
GROUPS = ["--groups", "8", "--rounds", "4"]
# what each part is called, its script and its arguments, the most telling first
PARTS: list[tuple[str, str, list[str]]] = [
    ("MoCo R18", "moco_step", [*R18, *SHORT, "--groups", "8", "--compile", "--views"]),
    ("MoCo R50", "moco_step", [*R50, *SHORT, "--groups", "8", "--compile"]),
    ("FPN, batch 2", "detector_steps", [*STEPS, "--detectors", "fpn", "--batch", "2"]),
    ("FPN, batch 8", "detector_steps", [*STEPS, "--detectors", "fpn", "--batch", "8"]),
    ("C4, batch 2", "detector_steps", [*STEPS, "--detectors", "c4", "--batch", "2"]),
    ("C4, batch 8", "detector_steps", [*STEPS, "--detectors", "c4", "--batch", "8"]),
    ("evaluation", "evaluation", ["--precision", "float32"]),
    ("evaluation, bfloat16", "evaluation", ["--precision", "bfloat16"]),
    ("precisions", "precisions", []),
    ("FPN, loader", "detector_steps", [*STEPS, *LOADER, "--detectors", "fpn", "--batch", "2"]),
    ("C4, loader", "detector_steps", [*STEPS, *LOADER, "--detectors", "c4", "--batch", "2"]),
    ("groups R50", "grouped_batch_norm", [*R50, *GROUPS, "--steps", "2"]),
    ("groups R18", "grouped_batch_norm", [*R18, *GROUPS, "--steps", "5"]),
    ("FPN, float16", "detector_steps", [*STEPS, "--detectors", "fpn", "--precision", "float16"]),
    ("two views", "two_views", ["--rounds", "3", "--seconds", "1.0"]),
]
NEEDS_DETECTRON2 = {"detector_steps"}


def call(command: Sequence[str], log: Path, seconds: float, env: dict[str, str]) -> str:
    """Run a command with its output in a file; what came of it in a word or two."""
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        try:
            code = subprocess.call(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=HERE.parent,
                env=env,
                timeout=max(seconds, 1.0),
            )
        except subprocess.TimeoutExpired:
            return f"no time left after {time.monotonic() - start:.0f} s"
    return f"{'ok' if code == 0 else f'FAILED with {code}'}, {time.monotonic() - start:.0f} s"


def last_lines(log: Path, count: int) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line for line in text.splitlines() if line.strip()][-count:]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts and write the table; 1 where one failed."""
    p = argparse.ArgumentParser(description="Tests and benchmarks on a GPU, one table.")
    p.add_argument("-o", "--output", type=Path, default=Path("runs/gpu"))
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu rehearses")
    p.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    p.add_argument("--workers", type=int, default=8, help="processes of the tests")
    p.add_argument("--skip-tests", action="store_true")
    p.add_argument("--skip-benchmarks", action="store_true")
    names = sorted({script for _, script, _ in PARTS})
    p.add_argument("--only", nargs="+", choices=names, help="these benchmarks, after the tests")
    args = p.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU; `moco-det doctor` says why, --device cpu rehearses")
    end = time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    output = args.output.resolve()
    rows = output / "rows.jsonl"
    rows.unlink(missing_ok=True)
    folders = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    parts: list[tuple[str, list[str]]] = []
    if not args.skip_tests:
        spread = ["-n", str(args.workers)] if find_spec("xdist") else []
        marked = ["-m", "gpu", "-q", "--device", args.device, "--durations", "10", *spread]
        parts.append(("tests", ["-m", "pytest", "tests/gpu", *marked]))
    for name, script, options in PARTS if not args.skip_benchmarks else []:
        if args.only is None or script in args.only:
            more = ["--rows", str(rows), "--device", args.device]
            parts.append((name, [str(HERE / f"{script}.py"), *options, *more]))
    outcomes: dict[str, str] = {}
    with tqdm(parts, unit="part") as bar:
        for name, command in bar:
            bar.set_description(name)
            log = output / f"{name.replace(' ', '_').replace(',', '')}.log"
            left = end - time.monotonic()
            if Path(command[0]).stem in NEEDS_DETECTRON2 and not find_spec("detectron2"):
                outcomes[name] = "left out, detectron2 is not on PYTHONPATH"
            elif left < 10:
                outcomes[name] = "no time left"
            else:
                # one thread per test process; the benchmarks' peers decide for themselves
                own = {**env, "OMP_NUM_THREADS": "1"} if name == "tests" else env
                outcomes[name] = call([sys.executable, *command], log, left, own)
                if not outcomes[name].startswith("ok") or name == "tests":
                    outcomes[name] += ": " + " / ".join(last_lines(log, 1))
            write_text(output / "table.md", page(outcomes, rows, args.device))
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"{output / 'table.md'}; what each part printed is beside it")
    return int(not all(outcome.startswith(("ok", "left out")) for outcome in outcomes.values()))


def page(outcomes: dict[str, str], rows: Path, device: str) -> str:
    """What was run where, how each part ended, and the rows."""
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    found = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
    lines = [f"torch {torch.__version__}, {where}, {os.cpu_count()} cores", ""]
    lines += [f"- {name}: {outcome}" for name, outcome in outcomes.items()]
    return "\n".join([*lines, "", table([json.loads(line) for line in found])])


if __name__ == "__main__":
    raise SystemExit(run(main))
