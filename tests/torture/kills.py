"""Kill training runs and resume them: python -m tests.torture.kills --seeds 0:70 -o kills.jsonl

A seed draws a run (method or engine, data, periods), runs it once to its end, and once more under
three kills, each followed by the same command. A third of the kills fall into a write or an
evaluation, the others at a uniform time. The file gains one line per seed, and seeds that it holds
are passed over; any number of processes may take ranges of their own. --table prints the files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.torture import command_line, runs
from tests.torture.attempts import Attempt, Ended, Limits
from tests.torture.moments import EVALUATION, WRITE, Board, Strike, instrument

KILLS = 3  # of a run
POLITE = {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}
LIMITS = Limits(cpu=300, wall=400)


@dataclass
class Killed:
    """A kill that a run had."""

    signal: str
    where: str  # time, write or evaluation
    step: int  # steps done in this part of the run
    code: int
    seconds: float  # from the signal to the end


@dataclass
class Torture:
    """A seed's run, whole and in parts."""

    seed: int
    folder: Path
    run: runs.TortureRun
    rng: random.Random
    board: Board = field(default_factory=Board)
    kills: list[Killed] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    useful: float = 0.0  # seconds between steps whose checkpoint was kept

    def __post_init__(self) -> None:
        self.whole, self.parts = self.folder / "whole", self.folder / "parts"
        self.d2 = self.run.kind.engine == "detectron2"

    def start(self, output: Path, strike: Strike | None = None, name: str = "") -> Attempt:
        """The command, in a child; a `name` keeps what it notes."""
        self.board.clear()
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        moments = self.folder / "moments" if name == "whole" else None
        order = self.folder / f"order_{name}" if name and self.d2 else None
        return Attempt(
            self.run.argv(output),
            scratch,
            prepare=lambda: instrument(self.board, strike, moments=moments, order=order),
            limits=LIMITS,
        )

    def torture(self) -> None:
        begun = time.monotonic()
        ended = self.start(self.whole, name="whole").end()
        self.expect(ended.code == 0, f"the uninterrupted run ends with {told(ended)}")
        if ended.code:
            return
        self.duration = ended.seconds
        self.setup = float(self.board.times[0]) - begun
        self.moments = [json.loads(x) for x in (self.folder / "moments").open()]
        busy = self.rng.randrange(KILLS + 1)
        for number in range(3 * KILLS):
            done = runs.progress(self.parts)
            last = len(self.kills) == KILLS
            if number == busy:
                self.share_the_folder()
            ended = self.part(done, kill=not last)
            if ended.code == 0:
                break
            self.expect(not ended.traceback, f"traceback: {told(ended)}")
        if not (self.parts / self.last_file).is_file():
            self.expect(False, f"the run did not end: {told(ended)}")
            return
        self.compare(time.monotonic() - begun)
        again = self.start(self.parts).end()
        self.expect(again.code == 0, f"a finished run resumed: {told(again)}")
        self.one_row("after the same command once more")

    @property
    def last_file(self) -> str:
        return "checkpoint.pth" if self.run.kind.engine == "pretrain" else "model_final.pth"

    def part(self, done: int, *, kill: bool) -> Ended:
        """One command of the run, killed where it gets that far."""
        number = signal.SIGKILL
        if self.rng.random() < 0.4:
            number = self.rng.choice(list(POLITE))
        strike, where = None, "time"
        if kill and self.rng.random() < 1 / 3:
            where = self.rng.choice((WRITE, EVALUATION))
            left = [row for row in self.moments if row[0] == where and row[2] >= done]
            strike = Strike(where, self.rng.randint(1, max(1, len(left))), number)
        share = 1 - done / self.run.total
        after = self.rng.uniform(0, self.setup + (self.duration - self.setup) * share)
        attempt = self.start(self.parts, strike, name="parts")
        sent = 0.0
        if kill and strike is None:
            until = time.monotonic() + after
            while time.monotonic() < until and attempt.running():
                time.sleep(0.002)
            if attempt.running():
                group = number in (signal.SIGKILL, signal.SIGINT) or self.rng.random() < 0.5
                attempt.send(number, group=group)
                sent = time.monotonic()
        ended = attempt.end()
        over = time.monotonic()
        orphans = attempt.left_behind()
        self.expect(not orphans, f"processes go on after {number.name}")
        self.expect(not ended.stopped, f"{ended.stopped} after {number.name}")
        hit = self.board.struck or sent
        kept = runs.progress(self.parts) - done
        self.useful += max(0.0, float(self.board.times[max(kept, 1) - 1] - self.board.times[0]))
        if hit:
            self.after_kill(ended, number, where, kept, over - hit)
        else:
            self.expect(ended.code == 0, f"without a kill the command ends with {told(ended)}")
        return ended

    def after_kill(
        self, ended: Ended, number: signal.Signals, where: str, kept: int, seconds: float
    ) -> None:
        steps = self.board.steps
        finished = ended.code == 0 and (self.parts / self.last_file).is_file()
        self.kills.append(Killed(number.name, where, steps, ended.code, round(seconds, 2)))
        if number == signal.SIGKILL:
            return
        right = ended.code == POLITE[number] or finished
        self.expect(right, f"{number.name} in {where}: exit {told(ended)}")
        lost = steps - kept
        self.expect(lost <= 0, f"{number.name} in {where} lost {lost} of {steps} steps")

    def share_the_folder(self) -> None:
        """A second run in the folder of one that is at work is refused in one line."""
        first = self.start(self.parts, name="parts")
        while self.board.steps == 0 and first.running():
            time.sleep(0.002)
        first.send(signal.SIGSTOP, group=True)
        if not first.running():  # it only had its row to write
            first.end()
            return
        second = Attempt(
            self.run.argv(self.parts), tmp(self.folder), limits=Limits(cpu=60, wall=100)
        ).end()
        lines = second.err.splitlines()
        refused = second.code == 2 and bool(lines) and lines[-1].startswith("error: another run")
        self.expect(refused, f"a second run in a busy folder: {told(second)}")
        first.send(signal.SIGKILL, group=True)
        first.end()
        if not refused:  # what both have written says nothing of kills
            shutil.rmtree(self.parts)
            (self.folder / "order_parts").unlink(missing_ok=True)

    def compare(self, spent: float) -> None:
        engine = self.run.kind.engine
        equal = runs.same(*(runs.final(p, engine) for p in (self.whole, self.parts)))
        if not self.d2:
            self.expect(equal, "the final checkpoint is not that of the uninterrupted run")
            metrics = [runs.rows(p / "metrics.jsonl") for p in (self.whole, self.parts)]
            self.expect(metrics[0] == metrics[1], "metrics.jsonl differs in more than times")
        elif not equal:
            same = runs.same_order(self.folder / "order_whole", self.folder / "order_parts")
            self.expect(same, "detectron2 goes on with another order of data")
            text = (self.parts / "log.txt").read_text()
            warned = "resumed from" in text or not any(k.step for k in self.kills)
            self.expect(warned, "detectron2 does not say what was not restored")
        left = runs.litter(self.parts)
        self.expect(not left, f"litter: {' '.join(left)[:200]}")
        self.one_row("after the kills")
        if engine != "pretrain":
            row = json.loads((self.parts / "results.jsonl").read_text().splitlines()[-1])
            wall = row["wall_seconds"]
            plausible = 0.98 * self.useful <= wall <= spent
            self.expect(plausible, f"wall_seconds {wall} of {self.useful:.2f} useful seconds")

    def one_row(self, when: str) -> None:
        if self.run.kind.engine != "pretrain":
            count = len((self.parts / "results.jsonl").read_text().splitlines())
            self.expect(count == 1, f"{count} rows {when}")

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def tmp(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def told(ended: Ended) -> str:
    """An end in one line."""
    last = (ended.err.strip() or ended.out.strip()).splitlines()[-1:]
    return f"{ended.code} ({ended.stopped or (last or ['nothing said'])[0][:160]})"


def run_seed(seed: int, sources: runs.Sources, folder: Path) -> dict[str, Any]:
    """The line of a seed; its folder stays where it has a fault."""
    rng, known = random.Random(seed), runs.kinds()
    kind = known[seed % len(known)]
    if kind.engine == "detectron2" and not importlib.util.find_spec("detectron2"):
        kind = kind._replace(engine="standalone")
    begun = time.monotonic()
    folder = folder / f"seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    one = Torture(seed, folder, runs.draw_run(kind, sources, rng), rng)
    one.torture()
    if not one.faults:
        shutil.rmtree(folder)
    return {
        "seed": seed,
        "engine": kind.engine,
        "kind": str(kind),
        "steps": one.run.total,
        "period": one.run.period,
        "kills": [asdict(kill) for kill in one.kills],
        "faults": one.faults,
        "seconds": round(time.monotonic() - begun, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Kills by engine and method, and what was found."""
    text = ["| run | runs | kills | in a write | in an evaluation | polite | faults |"]
    text.append("|---|---|---|---|---|---|---|")
    for kind in [*sorted({line["kind"] for line in lines}), "all"]:
        own = [line for line in lines if kind in (line["kind"], "all")]
        kills = [kill for line in own for kill in line["kills"]]
        where = Counter(kill["where"] for kill in kills)
        polite = sum(kill["signal"] != "SIGKILL" for kill in kills)
        faults = sum(len(line["faults"]) for line in own)
        numbers = (len(own), len(kills), where[WRITE], where[EVALUATION], polite, faults)
        text.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    polite_ends: dict[str, list[float]] = {}
    for line in lines:
        for kill in line["kills"]:
            polite_ends.setdefault(kill["signal"], []).append(kill["seconds"])
    for name, seconds in sorted(polite_ends.items()):
        codes = {k["code"] for line in lines for k in line["kills"] if k["signal"] == name}
        text.append(f"{name}: {len(seconds)}, exit {sorted(codes)}, {max(seconds)} s at most")
    for line in lines:
        text += [f"seed {line['seed']} ({line['kind']}): {fault}" for fault in line["faults"]]
    return "\n".join(text)


def main() -> int:
    def begin(args: argparse.Namespace, work: Path) -> Callable[[int], dict[str, Any]]:
        sources = runs.make_sources(Path(tempfile.mkdtemp(prefix="data-", dir=work)))
        return lambda seed: run_seed(seed, sources, work)

    return command_line.run(argparse.ArgumentParser(description=__doc__), begin, table)


if __name__ == "__main__":
    raise SystemExit(main())
