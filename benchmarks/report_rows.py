"""How long a report of many rows takes, and how large it gets.

    python benchmarks/report_rows.py RESULTS.jsonl [--rows 1000] [--arms 8] [--settings 5]

The finished detection rows of RESULTS.jsonl are the pattern: copies of them get made-up arm and
setting names, seeds and APs, and are rendered by the command that people use.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run

REPORT = Path(__file__).resolve().parents[1] / "tools" / "report.py"


def patterns(path: Path) -> list[dict[str, Any]]:
    """The finished rows with a box AP."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    rows = [r for r in rows if r.get("status") == "finished" and "bbox" in (r["metrics"] or {})]
    if not rows:
        raise InputError(f"{path} has no finished row with a box AP: name a file of such rows")
    return rows


def synthetic(source: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows over `arms` times `settings`, seeds counted up, each AP off by a made-up amount."""
    rng = random.Random(0)
    rows = []
    for number in range(args.rows):
        row = copy.deepcopy(source[number % len(source)])
        arm, setting = number % args.arms, number // args.arms % args.settings
        name = ("random", "supervised")[arm] if arm < 2 else f"arm{arm}"
        row["seed"] = number // (args.arms * args.settings)
        row["init"] = {**row["init"], "name": name}
        row["config_name"] = f"setting{setting}"
        row["run"] = f"{name}_{setting}_seed{row['seed']}"
        for metric in row["metrics"].values():
            for key, value in metric.items():
                if isinstance(value, float):
                    # a row outside 0 to 100 would be skipped
                    metric[key] = min(100.0, max(0.0, value + arm + rng.gauss(0, 1)))
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Make the rows, render them, print seconds and sizes."""
    p = argparse.ArgumentParser(description="A report of many rows: seconds and bytes.")
    p.add_argument("results", type=Path, help="a results.jsonl whose rows are the pattern")
    p.add_argument("--rows", type=int, default=1000)
    p.add_argument("--arms", type=int, default=8)
    p.add_argument("--settings", type=int, default=5)
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps(row) for row in synthetic(patterns(args.results), args)]
        (folder / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, str(REPORT), str(folder / "results.jsonl"), "-o", str(folder)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, used = time.perf_counter() - start, os.times()
        print(
            f"{args.rows} rows, {args.arms} arms, {args.settings} settings: {seconds:.1f} s, "
            f"{used.children_user + used.children_system:.1f} s of processor time"
        )
        for file in ("report.html", "report.md"):
            print(f"{file:12} {(folder / file).stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
