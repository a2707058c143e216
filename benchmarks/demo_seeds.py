"""The demo on several seeds of painter, encoders and runs: what it shows, and what is chance.

    python benchmarks/demo_seeds.py [--seeds 101 102 103 104 105] [-o runs/demo_seeds] [OPTIONS]

Each seed is one call of tools/quickstart.py, whose OPTIONS may follow; what is there already is
kept. A line per seed has the mean AP of its runs; the differences are paired over the seeds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.report.statistics import Comparison, compare_paired, summarise
from moco_det.results import Row, read_rows
from moco_det_tools.entry import run

QUICKSTART = Path(__file__).resolve().parents[1] / "tools" / "quickstart.py"
METRICS = {"bbox": "box AP", "segm": "mask AP"}
SECONDS = "seconds.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103, 104, 105])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo_seeds"))
    args, options = parser.parse_known_args(argv)
    rows: dict[int, list[Row]] = {}
    for seed in args.seeds:
        folder = args.output / str(seed)
        demo(seed, folder, options)
        rows[seed] = [row for row in read_rows([folder / "results.jsonl"]).rows if row.finished]
    settings = sorted({str(row.data["config_name"]) for found in rows.values() for row in found})
    for setting in settings:
        own = {
            seed: [row for row in found if row.data["config_name"] == setting]
            for seed, found in rows.items()
        }
        for metric, title in METRICS.items():
            print("\n".join(["", f"{setting}, {title}", *table(own, metric)]))
    print()
    for seed in args.seeds:
        print(f"seed {seed}: {(args.output / str(seed) / SECONDS).read_text()} s")
    return 0


def demo(seed: int, folder: Path, options: Sequence[str]) -> None:
    """One call of the demo; its seconds are kept where it ran from nothing to its end."""
    start = [sys.executable, str(QUICKSTART), "--pretrain", "--seed", str(seed)]
    command = [*start, "-o", str(folder), *options]
    fresh, begun = not folder.exists(), time.monotonic()
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"seed {seed} did not finish: see above")
    if fresh:
        (folder / SECONDS).write_text(f"{time.monotonic() - begun:.0f}")
    elif not (folder / SECONDS).is_file():
        (folder / SECONDS).write_text("not measured, stopped in between:")


def table(rows: dict[int, list[Row]], metric: str) -> list[str]:
    """Arms by seeds, and the differences of the last arms to the first two."""
    arms = list(dict.fromkeys(str(row.data["init"]["name"]) for row in next(iter(rows.values()))))
    means = {
        arm: {
            seed: summarise(
                row.metric(metric, "AP") for row in found if row.data["init"]["name"] == arm
            ).mean
            for seed, found in rows.items()
        }
        for arm in arms
    }
    lines = [f"{'seed':>24}" + "".join(f"{seed:>8}" for seed in rows) + f"{'mean ± std':>16}"]
    for arm, by_seed in means.items():
        every = summarise(by_seed.values())
        spread = f" ± {every.std:.1f}" if every.std is not None else ""
        cells = "".join(f"{value:>8.1f}" for value in by_seed.values())
        lines.append(f"{arm:>24}{cells}{f'{every.mean:.1f}{spread}':>16}")
    for arm, other in ((a, b) for a in arms for b in arms[:2] if arms.index(a) > arms.index(b)):
        gap = compare_paired(means[arm], means[other])
        lines.append(f"{f'{arm} - {other}':>24} {difference(gap)}")
    return lines


def difference(gap: Comparison) -> str:
    """A difference with its 95 % interval over the seeds."""
    if gap.low is None or gap.high is None:
        return f"{gap.difference:+.1f}"
    return f"{gap.difference:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}], {gap.verdict}"


if __name__ == "__main__":
    raise SystemExit(run(main))
