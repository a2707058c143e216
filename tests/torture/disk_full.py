"""Every tool on a full disk: one line, exit code 2, and nothing half-written.

    python -m tests.torture.disk_full        prints the table of docs/reliability.md

A process that may write no file beyond so many bytes (RLIMIT_FSIZE) meets what a full disk does:
the write that would cross the limit fails, in whatever library it happens.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.pretrain.conftest import write_images
from tests.standalone.tiny import CONFIG, KEYS, scenes

LIMITS = (10, 300, 5_000, 100_000)  # bytes; a tool that writes less has nothing to say


def words(keys: Mapping[str, object]) -> list[str]:
    """Keys as on a command line."""
    return [str(text) for pair in keys.items() for text in pair]


def prepare(root: Path) -> dict[str, list[str]]:
    """The tools by name with arguments that write below root/out, all of which end well."""
    painted = scenes(root / "scenes")
    out = root / "out"
    pretrain = {
        "DATA.PATH": painted.train_images,
        "SOLVER.BATCH": 4,
        "SOLVER.MAX_ITER": 2,
        "ENCODER.BN_SPLITS": 1,
        "AUGMENT.SIZE": 32,
        "MOCO.K": 8,
        "ENCODER.DIM": 8,
        "DATA.WORKERS": 0,
        "LOG_EVERY": 1,
        "CHECKPOINT_EVERY": 1,
        "DEVICE": "cpu",
    }
    detector = KEYS | {
        "DATASETS.TRAIN": repr((painted.train,)),
        "DATASETS.TEST": repr((painted.test,)),
        "SOLVER.MAX_ITER": "2",
        "DATALOADER.NUM_WORKERS": "0",
    }
    quick = ["--config-file", "pretrain/quick/moco_v2_r18", *words(pretrain)]
    train = ["--engine", "standalone", "--config-file", str(CONFIG), *words(detector)]
    run, encoder = root / "run", root / "encoder" / "checkpoint.pth"
    suite = root / "suite.yaml"
    suite.write_text(f"seeds: 1\nsettings: [{{name: tiny, config: {CONFIG}}}]\n")
    given = ("DATASETS.TRAIN", "DATASETS.TEST", "SEED")  # by the matrix
    changed = [(key, value) for key, value in detector.items() if key not in given]
    matrix = [word for key, value in changed for word in ("--set", key, str(value))]
    matrix += ["--data", painted.train, painted.test, "--no-supervised", "--engine", "standalone"]
    classes = [root / name for name in ("train", "test")]
    for seed, folder in enumerate(classes):
        for name in ("cat", "dog"):
            write_images(folder / name, 4, seed=seed)
    sets = ["--train", str(classes[0]), "--test", str(classes[1]), "--size", "32"]
    tools = {
        "pretrain": [*quick, "OUTPUT_DIR", str(out / "a")],
        "pretrain, TensorBoard": [*quick, "TENSORBOARD", "True", "OUTPUT_DIR", str(out / "a")],
        "train-net": [*train, "OUTPUT_DIR", repr(str(out / "a"))],
        "train-net, two processes": ["--num-gpus", "2", *train, "OUTPUT_DIR", repr(str(out / "a"))],
        "benchmark": ["--suite", str(suite), *matrix, "-o", str(out / "suite")],
        "probe knn": ["knn", str(encoder), *sets, "--results", str(out / "rows.jsonl")],
        "probe linear": [
            *("linear", str(encoder), *sets, "--epochs", "1", "--workers", "0"),
            *("--results", str(out / "rows.jsonl"), "--output", str(out / "probe")),
        ],
        "convert-weights": [str(encoder), str(out / "backbone.pkl")],
        "make-shards": [str(painted.train_images), "--output", str(out / "shards")],
        "predict": [
            *("--config-file", str(run / "config.yaml"), "--engine", "standalone"),
            *("--input", str(painted.test_images), "-o", str(out / "drawn")),
            *("--confidence-threshold", "0"),
        ],
        "report": [str(run), "-o", str(out / "report")],
        "results": ["export", str(run), "-o", str(out / "rows.csv")],
        "export": [str(run), "-o", str(out / "a.pt2"), "--opts", "INPUT.MIN_SIZE_TEST", "96"],
        "quickstart": ["--arms", "random", "-o", str(out / "quick")],
    }
    for name, arguments in (
        ("pretrain", [*quick, "OUTPUT_DIR", str(root / "encoder")]),
        ("train-net", [*train, "OUTPUT_DIR", repr(str(run))]),
    ):
        done = call(name, arguments, None)
        assert done.returncode == 0, done.stderr
    return tools


def call(tool: str, arguments: list[str], limit: int | None) -> subprocess.CompletedProcess[str]:
    """A tool in a process that may write no file of more than `limit` bytes."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "moco_det_tools.cli", re.split("[, ]", tool)[0], *arguments],
        preexec_fn=restrict,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fault(done: subprocess.CompletedProcess[str], out: Path) -> str | None:
    """What is wrong with how a tool ended, None where nothing is."""
    left = [str(f) for f in out.rglob("*") if f.name.endswith((".partial", ".tmp"))]
    if left:
        return f"left {left}"
    if done.returncode == 0:
        return None
    said = re.findall("^(error|failed: .*): cannot ", done.stderr, re.MULTILINE)
    code = 2 if said == ["error"] else 1  # a suite goes on with its other runs
    if done.returncode != code or len(said) != 1 or "Traceback" in done.stderr + done.stdout:
        return f"exit code {done.returncode}: {done.stderr[-1500:]}"
    return None


def attempts(root: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[str, int, str, str | None]]:
    """Tool, limit, its last line of errors and what is wrong, one per attempt."""
    for name, arguments in prepare(root).items():
        for limit in LIMITS if not names or name in names else ():
            done = call(name, arguments, limit)
            last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            said = last[-1].replace(str(root), "") if last else "written"
            yield name, limit, said, fault(done, root / "out")
            subprocess.run(["rm", "-rf", str(root / "out")], check=True)


def main() -> int:
    """Print the table; exit code 1 where a tool ended otherwise."""
    wrong = 0
    print("| tool | bytes per file | what it said |\n|---|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, limit, said, found in attempts(Path(folder), tuple(sys.argv[1:])):
            wrong += found is not None
            print(f"| {name} | {limit:,} | {found or said} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
