"""Give the tools hostile input: python -m tests.torture.hostile --seeds 0:5000 -o hostile.jsonl

A seed draws a kind of input, makes it, and gives it to a tool in a child of limited time and
memory. The end is judged: exit code 0 or 2; with 2 one line `error: ...`; no traceback, nothing
executed, nothing half written, nothing outside the folder, no html in a report. The file gains one
line per seed, and seeds that it holds are passed over; any number of processes may take ranges of
their own. Inputs of violations stay in --work. --table prints the files.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.torture import command_line, hostile_data, hostile_files, hostile_words
from tests.torture.attempts import Attempt, Ended, Limits
from tests.torture.base import Base
from tests.torture.runs import LITTER
from tests.torture.values import MARK, Case

KINDS: dict[str, Callable[[random.Random, Path, Base], Case]] = {
    "damaged checkpoints": hostile_files.checkpoints,
    "entries of pre-training": hostile_files.entries_of_pretraining,
    "entries of detectors": hostile_files.entries_of_detectors,
    "executing pickles": hostile_files.executing,
    "bombs": hostile_files.bombs,
    "COCO": hostile_data.coco,
    "VOC": hostile_data.voc,
    "YOLO": hostile_data.yolo,
    "images": hostile_data.images,
    "lists": hostile_data.lists,
    "shards": hostile_data.shards,
    "yaml": hostile_words.yaml_texts,
    "pre-training keys": hostile_words.pretraining_keys,
    "detection keys": hostile_words.detection_keys,
    "result rows": hostile_words.hostile_rows,
    "metrics.jsonl": hostile_words.logs,
    "arguments": hostile_words.arguments,
}
LIMITS = Limits(cpu=25, wall=150)
MOST_MIB = 4096
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")


class Tags(HTMLParser):
    """Notes elements that came from a hostile text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if any((value or "").startswith(MARK) or key == "onerror" for key, value in attrs):
            self.found.append(tag)


def watch_writes(folder: Path, log: int) -> Callable[[], None]:
    """In the child: writes outside its folder are noted in an open file."""
    inside = (str(folder), "/dev/", "/proc/", "/sys/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3
        if not writes and event not in CHANGES:
            return
        for path in arguments[:1]:
            if isinstance(path, (str, bytes)):
                whole = os.path.abspath(os.fsdecode(path))
                made = event == "os.mkdir" and os.path.isdir(whole)  # it is there already
                if not made and not whole.startswith(inside):
                    os.write(log, f"{event} {whole}\n".encode(errors="replace"))

    return lambda: sys.addaudithook(hook)


def judge(case: Case, ended: Ended, folder: Path, written: str) -> list[str]:
    """What is wrong with an end."""
    faults = []
    if ended.stopped:
        faults.append("hang" if ended.stopped.startswith("hangs") else "time")
    elif ended.code >= 128:
        faults.append(f"crash: {ended.code}")
    elif ended.traceback:
        faults.append("traceback")
    elif ended.code not in case.codes:
        faults.append(f"exit {ended.code}")
    if ended.peak_mib > MOST_MIB:
        faults.append(f"memory: {ended.peak_mib} MiB")
    if ended.code == 2 and not faults:
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        last = ended.err.splitlines()[-1:] or [""]
        if lines != last:
            faults.append("not one error line at the end")
        elif len(last[0]) > 6000 or not last[0].isprintable() or len(last[0].split()) < 4:
            faults.append("an error line that nobody can read")
    if (folder / "canary").exists():
        faults.append("executed")
    left = [path for path in folder.glob("**/*") if LITTER.match(path.name)]
    if left:
        faults.append(f"left behind: {left[0].name}")
    if case.new and ended.code == 2 and any(folder.glob("out*")):
        faults.append("half written output")
    if written:
        faults.append(f"wrote outside: {written.splitlines()[0]}")
    page = folder / "out" / "report.html"
    if page.is_file():
        tags = Tags()
        tags.feed(page.read_text(errors="replace"))
        if tags.found:
            faults.append(f"html in the report: {tags.found}")
    return faults


def run_seed(seed: int, base: Base, work: Path, wanted: list[str]) -> dict[str, Any]:
    """The line of a seed."""
    rng, begun = random.Random(seed), time.monotonic()
    kind = wanted[seed % len(wanted)]
    folder = work / f"seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    case = KINDS[kind](rng, folder, base)
    with tempfile.TemporaryFile() as log:
        prepare = watch_writes(folder, log.fileno())
        attempt = Attempt(case.argv, folder, prepare=prepare, limits=LIMITS)
        ended = attempt.end()
        orphans = attempt.left_behind()
        log.seek(0)
        faults = judge(case, ended, folder, log.read().decode())
    faults += ["processes left"] * orphans
    if not faults:
        shutil.rmtree(folder)
    said = (ended.err.strip().splitlines() or [""])[-1]
    return {
        "seed": seed,
        "kind": kind,
        "tool": case.argv[0],
        "note": case.note[:300],
        "code": ended.code,
        "said": said[:300],
        "faults": faults,
        "cpu": round(ended.cpu, 2),
        "peak_mib": ended.peak_mib,
        "seconds": round(time.monotonic() - begun, 2),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Inputs and violations by kind, then each violation."""
    text = ["| input | tried | refused in one line | taken | violations | most CPU, s | most MiB |"]
    text.append("|---|---|---|---|---|---|---|")
    for kind in [*KINDS, "all"]:
        own = [line for line in lines if kind in (line["kind"], "all")]
        if own:
            bad = sum(bool(line["faults"]) for line in own)
            good = Counter(line["code"] for line in own if not line["faults"])
            cpu, peak = (max(line[key] for line in own) for key in ("cpu", "peak_mib"))
            numbers = (len(own), good[2], good[0] + good[1], bad, cpu, peak)
            text.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    for line in lines:
        if line["faults"]:
            about = f"seed {line['seed']} ({line['kind']}, {line['tool']}: {line['note'][:90]!r})"
            text.append(f"{about}: {'; '.join(line['faults'])}: {line['said'][:140]}")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))

    def begin(args: argparse.Namespace, work: Path) -> Callable[[int], dict[str, Any]]:
        base = Base(Path(tempfile.mkdtemp(prefix="base-", dir=work)))
        return lambda seed: run_seed(seed, base, work, args.kinds)

    return command_line.run(parser, begin, table)


if __name__ == "__main__":
    raise SystemExit(main())
