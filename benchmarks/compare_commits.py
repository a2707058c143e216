"""Show that two commits compute the same numbers, bit for bit: run it before and after a refactor.

    python benchmarks/compare_commits.py REV_A REV_B
    python benchmarks/compare_commits.py --record REV -o a.json
    python benchmarks/compare_commits.py --diff a.json b.json

A revision is anything git knows, or a folder: a checkout as it lies there, edits included. The
cases of commit_cases.py run in each with its own code, on one thread of the CPU in float32: every
pre-training method, the probes, conversions, detectors, a suite and its report. Every number they
write is recorded: weights per tensor, metrics, predictions, rows, tables. Times, hardware,
versions, paths and sentences are left out. A record is written after each case, so a stopped
command continues where it was. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from commit_cases import BACKBONE, CASES, ROOT, Step, prepare

# What two runs of one commit do not share, by the last part of its name.
VOLATILE = {
    *("command", "config_file", "data_time", "data_wait", "engine_version", "eta_seconds"),
    *(
        "files",
        "hardware",
        "images_per_second",
        "memory",
        "output_dir",
        "python",
        "rank_data_time",
        "run",
        "seconds",
        "started",
        "time",
    ),
    *("torch", "torchvision", "version", "versions", "wall_seconds", "warning", "warnings"),
}
UNREAD = {"console.txt", "log.txt", "last_checkpoint", "report.html"}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", re.IGNORECASE)
# dates, versions and durations
NO_NUMBER = re.compile(r"\d{4}-\d\d-\d\d[T ]?[\d:+]*|\d+\.\d+\.\d+|\d+(?:\.\d+)? (?:s|min|h)\b")
Quantities = dict[str, Any]


# Reading what a command wrote -------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def run_name(row: dict[str, Any]) -> str:
    """Rows are in the order of their runs' names: runs side by side end in any order."""
    return str(row.get("run", ""))


def flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each number, word and tensor under its dotted name; long lists by columns, as hashes."""
    if isinstance(value, dict):
        for key in value:
            if key == "config" and isinstance(value[key], str):  # of a row: yaml
                yield from flatten(yaml.safe_load(value[key]), f"{name}.config")
            elif str(key) not in VOLATILE:
                yield from flatten(value[key], f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, f"{value.dtype} {list(value.shape)} {digest(content)}"
    elif isinstance(value, np.ndarray):
        yield name, f"{value.dtype} {list(value.shape)} {digest(value.tobytes())}"
    elif isinstance(value, (list, tuple)) and len(value) <= 16:
        yield f"{name}.length", len(value)
        for i, item in enumerate(value):
            yield from flatten(item, f"{name}.{i}")
    elif isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        for key in sorted({key for item in value for key in item} - VOLATILE):
            column = [item.get(key) for item in value]
            yield f"{name}.*.{key}", f"{len(column)} of {digest(json.dumps(column).encode())}"
    elif isinstance(value, (list, tuple)):
        yield name, f"{len(value)} of {digest(repr(value).encode())}"
    else:
        yield name, value if isinstance(value, (bool, int, float, type(None))) else str(value)


def read(file: Path, name: str, tree: str) -> Iterator[tuple[str, Any]]:
    """The quantities of one file, by its format."""
    if file.suffix == ".pth":
        yield from flatten(torch.load(file, map_location="cpu", weights_only=True), name)
    elif file.suffix in (".pkl", ".safetensors", ".tar", ".png", ".jpg"):
        yield name, digest(file.read_bytes())
    elif file.suffix in (".json", ".jsonl", ".yaml", ".csv", ".tex", ".md", ".txt"):
        text = file.read_text(encoding="utf-8").replace(tree, ".")
        # a run's folder is named after its keys, and among these are paths
        text = re.sub(r"(_seed\d+)_[0-9a-f]{10}", r"\1", text)
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            yield from flatten(sorted(rows, key=run_name), name)
        elif file.suffix == ".json":
            yield from flatten(json.loads(text), name)
        elif file.suffix == ".yaml":
            yield from flatten(yaml.safe_load(text), name)
        elif file.suffix == ".csv":
            yield from flatten(sorted(csv.DictReader(io.StringIO(text)), key=run_name), name)
        elif file.suffix == ".txt":  # what a command prints, where sentences may move
            yield name, " ".join(sorted(NUMBER.findall(NO_NUMBER.sub("", text))))
        else:  # of a page the tables
            lines = [x for x in text.splitlines() if file.suffix != ".md" or x.startswith("|")]
            for i, line in enumerate(lines):
                if numbers := NUMBER.findall(NO_NUMBER.sub("", line)):
                    yield f"{name}:{i + 1}", " ".join(numbers)


def quantities(folder: Path, tree: Path) -> Quantities:
    """Everything below a folder of the tree, whose own path is taken out."""
    found: Quantities = {}
    for file in sorted(folder.rglob("*")):
        name = re.sub(r"_[0-9a-f]{10}(?=/)", "", str(file.relative_to(folder)))
        if file.is_file() and file.name not in UNREAD:
            found.update(read(file, name, str(tree)))
    return found


# Recording a commit -----------------------------------------------------------------------------


def check_out(revision: str, folder: Path) -> str:
    """Put a revision's files into an empty folder; its name."""
    if Path(revision).is_dir():
        listing = ["git", "-C", revision, "ls-files", "-co", "--exclude-standard", "-z"]
        names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (Path(revision) / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((Path(revision) / name).read_bytes())
        commit = str(Path(revision).resolve())
    else:
        commit = commit_of(revision)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
    # what an installation would call the two folders
    for name in ("tools", "configs"):
        (folder / f"moco_det_{name}").symlink_to(name)
    return commit


def commit_of(revision: str) -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "-q", f"{revision}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        print(f"error: {revision} is no commit of {ROOT} and no folder", file=sys.stderr)
        raise SystemExit(2)
    return found.stdout.strip()


def environment(tree: Path, detectron2: Path | None) -> dict[str, str]:
    """One thread on the CPU, and the tree's own modules before any installed ones."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = [str(tree), *([str(detectron2)] if detectron2 else [])]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **one, **hidden, "PYTHONPATH": os.pathsep.join(paths)}


def processor() -> str:
    """The processor's name, on Linux the one that tells models apart."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def run_step(step: Step, tree: Path, env: dict[str, str]) -> str:
    """Run a command or function in the tree; its last words where it failed, else nothing."""
    if callable(step):
        step()
        return ""
    word, _, rest = step.partition(" ")
    if (tree / "tools" / f"{word}.py").is_file():
        step = f"'{sys.executable}' tools/{word}.py {rest}"
    elif word == "torchrun":
        step = f"'{sys.executable}' -m torch.distributed.run --standalone {rest}"
    done = subprocess.run(step, shell=True, cwd=tree, env=env, capture_output=True, text=True)
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
    return f"exit code {done.returncode}: {said[-1]}" if done.returncode else ""


def record(
    revision: str, output: Path, names: Sequence[str], *, detectron2: Path | None
) -> dict[str, Any]:
    """Run the cases that `output` does not hold yet, adding what each wrote."""
    kept = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"cases": {}}
    plans = {n: digest(repr([getattr(s, "__name__", s) for s in CASES[n]]).encode()) for n in names}
    todo = [n for n in names if kept["cases"].get(n, {}).get("plan") != plans[n]]
    if not todo:
        return kept
    with tempfile.TemporaryDirectory(prefix="compare_commits_") as temporary:
        tree = Path(temporary).resolve()
        kept |= {"commit": check_out(revision, tree), "torch": torch.__version__}
        kept["machine"] = f"{processor()}, Python {platform.python_version()}"
        env = environment(tree, None)
        back = Path.cwd()
        os.chdir(tree)
        prepare()
        if said := run_step(f"convert_weights data/moco.pth {BACKBONE}", tree, env):
            raise SystemExit(f"error: {revision} makes no backbone: {said}")
        made = [file for file in sorted(Path("data").rglob("*")) if file.is_file()]
        kept["inputs"] = {str(file): digest(file.read_bytes()) for file in made}
        start = time.monotonic()
        for i, name in enumerate(todo):
            began = time.monotonic()
            shutil.rmtree(tree / "out", ignore_errors=True)
            (tree / "out").mkdir()
            env = environment(tree, detectron2 if name.startswith("detectron2/") else None)
            failed = next(filter(None, (run_step(step, tree, env) for step in CASES[name])), "")
            found = {"failed": failed} if failed else quantities(tree / "out", tree)
            now = time.monotonic()
            kept["cases"][name] = {
                "plan": "" if failed else plans[name],  # what failed is run again
                "seconds": round(now - began, 1),
                "quantities": found,
            }
            output.parent.mkdir(parents=True, exist_ok=True)
            output.with_suffix(".part").write_text(json.dumps(kept, indent=1), encoding="utf-8")
            output.with_suffix(".part").replace(output)
            left = (now - start) / (i + 1) * (len(todo) - i - 1)
            print(
                f"{revision}  {name:24}{now - began:4.0f} s  {failed or f'{len(found)} quantities'}"
                f"  ({i + 1}/{len(todo)}, about {left / 60:.0f} min left)",
                flush=True,
            )
        os.chdir(back)
    return kept


# Comparing --------------------------------------------------------------------------------------


def differences(a: Quantities, b: Quantities) -> list[str]:
    """What is unequal or on one side alone; a failure is a difference even if both have it."""
    lines = []
    for name in [*a, *(name for name in b if name not in a)]:
        here, there = a.get(name, "missing"), b.get(name, "missing")
        # as text: nan equals nan, and 1 is not 1.0
        if name.rpartition(".")[2] in VOLATILE:
            continue
        if repr(here) != repr(there) or name == "failed":
            lines.append(f"{name}: {here} | {there}")
    return lines


def compare(a: dict[str, Any], b: dict[str, Any], names: Sequence[str], shown: int) -> bool:
    """Print one line per case; whether all are the same."""
    for key in ("torch", "machine"):
        if a[key] != b[key]:
            print(f"warning: recorded on different {key}: {a[key]} | {b[key]}")
    pairs = [("inputs", a["inputs"], b["inputs"])] + [
        (name, *(side["cases"].get(name, {}).get("quantities", {}) for side in (a, b)))
        for name in names
        if name in a["cases"] or name in b["cases"]
    ]
    wrong = 0
    for name, here, there in pairs:
        lines = differences(here, there)
        wrong += bool(lines)
        verdict = f"{len(lines)} differ" if lines else "same"
        print(f"{name:24}{verdict:>14}  of {len(here.keys() | there.keys())}")
        for line in lines[:shown]:
            print(f"    {line[:200]}")
    print(f"{a['commit'][:12]} and {b['commit'][:12]}: {wrong or 'none'} of {len(pairs)} differ")
    return not wrong


def main() -> int:
    """Record, compare, or both."""
    parser = argparse.ArgumentParser(description="Compare two commits number by number.")
    parser.add_argument("revisions", nargs="*", metavar="REV", help="two commits or folders")
    parser.add_argument("--record", metavar="REV", help="record this one only, to -o")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="of --record")
    parser.add_argument("--diff", nargs=2, type=Path, metavar="FILE", help="compare two records")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases whose name begins so")
    parser.add_argument("--detectron2", type=Path, metavar="DIR", help="its checkout")
    parser.add_argument("--demo", action="store_true", help="run the whole demo too")
    parser.add_argument("--shown", type=int, default=5, help="differences per case (default 5)")
    args = parser.parse_args()
    names = [n for n in CASES if n.startswith(tuple(args.only or [""]))]
    if not names:
        parser.error(f"--only {' '.join(args.only)}: the cases are {', '.join(CASES)}")
    if args.diff:
        a, b = (json.loads(file.read_text(encoding="utf-8")) for file in args.diff)
        return 0 if compare(a, b, names, args.shown) else 1
    if not args.demo:
        names = [n for n in names if n != "demo"]
    if not args.detectron2 and any(n.startswith("detectron2/") for n in names):
        print("skipped: the cases of detectron2, without --detectron2 DIR")
        names = [n for n in names if not n.startswith("detectron2/")]
    detectron2 = args.detectron2 and args.detectron2.resolve()
    if args.record:
        if not args.output:
            parser.error("--record needs -o FILE")
        made = record(args.record, args.output.resolve(), names, detectron2=detectron2)
        return int(any("failed" in made["cases"][n]["quantities"] for n in names))
    if len(args.revisions) != 2:
        parser.error("name two revisions, or --record REV -o FILE, or --diff FILE FILE")
    records = []
    for revision in args.revisions:
        folder = Path(revision).is_dir()
        name = "folder_" + digest(revision.encode()) if folder else commit_of(revision)
        file = ROOT / "runs" / "compare_commits" / f"{name}.json"
        if folder:  # its files may have changed since
            file.unlink(missing_ok=True)
        records.append(record(revision, file, names, detectron2=detectron2))
    return 0 if compare(records[0], records[1], names, args.shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
