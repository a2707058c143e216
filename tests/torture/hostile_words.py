"""Hostile configs, command lines, result rows and logs."""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moco_det.foundation.declared import declared_keys
from moco_det.foundation.strict_yaml import flatten
from moco_det.settings.config import get_cfg
from moco_det_tools import cli
from pretrain.config import PretrainConfig
from tests.torture.base import Base
from tests.torture.values import JSON, RAW, SPECIAL, WORDS, YAML, Case, changed, raw_json, special

PRETRAINING = [key for key in declared_keys(PretrainConfig) if key != "OUTPUT_DIR"]
DETECTION = [key for key in flatten(get_cfg()) if key != "OUTPUT_DIR"]
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: *a{i - 1}}}\n" for i in range(1, 40)
)
TEXTS = (
    *(LAUGHS, MERGES, "&a [*a]", "&a {x: *a}", "a: &a {b: *a}", "", "\0", "\ufeff", "a: 1\na: 2"),
    *(
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "a:\n " * 5000,
        "--- a\n--- b",
        "%TAG ! x",
        "x" * 10**6,
    ),
    *("_BASE_: c.yaml", "_BASE_: /dev/zero", "_BASE_: .", "_BASE_: [a]", "_BASE_: ''", "_BASE_: 1"),
    *("_BASE_: " + "../" * 2000 + "etc/passwd", "_BASE_: https://127.0.0.1:9/x.yaml", "SOLVER: 1"),
    *("? [a]\n: 1", "? {a: 1}\n: 1", "!!python/object/apply:os.system ['touch canary']", "1: 2"),
    *("SOLVER: &a {X: *a}", "SOLVER:\n  BASE_LR: &a [*a]", "- a", "null", "MODEL: {[1]: 2}", "\t"),
)


def yaml_texts(rng: random.Random, at: Path, base: Base) -> Case:
    """Config files that are no config, or more than one."""
    file, way = at / "c.yaml", rng.randrange(4)
    path = str(file)
    if way == 0:
        note = rng.choice(TEXTS)
        file.write_text(note)
    elif way == 1:
        note = rng.choice(SPECIAL)
        path = special(file, note)
        if rng.random() < 0.5:
            (at / "d.yaml").write_text(f"_BASE_: {json.dumps(path)}\n")
            path = str(at / "d.yaml")
    else:
        key = rng.choice(rng.choice((PRETRAINING, DETECTION)))
        value = rng.choice(YAML)
        first, _, second = key.partition(".")
        nested = second.replace(".", ": {") + ": "
        inner = f" {{{nested}{value}{'}' * (second.count('.') + 1)}}}" if second else f" {value}"
        note = f"{first}:{inner}"
        file.write_text(note + "\n", errors="surrogatepass")
    note = note[:80]
    tool = rng.randrange(6)
    if tool == 0:
        return Case(["plan", "--config-file", path, "--images", "99", "--gpus", "0"], note)
    if tool == 1:
        return Case(["check-matched", path, "R18_FPN", "--without-weights"], note, codes=(0, 1, 2))
    if tool == 2:
        suite = ["--suite", path, "--dry-run", "--no-supervised"]
        return Case(["benchmark", *suite, "-o", str(at / "out")], note)
    if tool == 3:
        words = base.pretrain(at, {})
        return Case([*words[:2], path, *words[3:]], note)
    if tool == 4:
        images = ["--input", str(base.images / "cat"), "-o", str(at / "out")]
        weights = ["--weights", str(base.detector / "model_final.pth")]
        return Case(["predict", "--config-file", path, *weights, *images], note, new=True)
    words = base.train_net(at, {}, rng)
    return Case([*words[:2], path, *words[3:]], note)


def odd(rng: random.Random) -> str:
    """A word, of which the numbers come more often."""
    return rng.choice(WORDS[:13] if rng.random() < 0.7 else WORDS)


def pretraining_keys(rng: random.Random, at: Path, base: Base) -> Case:
    """A key of a pre-training config with a value that no run has."""
    keys = {rng.choice(PRETRAINING): odd(rng) for _ in range(rng.choice((1, 1, 2)))}
    note = " ".join(f"{key}={value[:20]!r}" for key, value in keys.items())
    method = rng.choice(("moco", "end_to_end", "memory_bank", "inst_disc", "supervised"))
    if rng.random() < 0.3:
        words = [text for pair in keys.items() for text in pair]
        sizes = ["--images", rng.choice(("99", "0", "-1", "9" * 30, "1000000000")), "--gpus", "0"]
        return Case(["plan", *sizes, *words], note)
    return Case(base.pretrain(at, {"METHOD": method, **keys}), note)


def detection_keys(rng: random.Random, at: Path, base: Base) -> Case:
    """A key of a detection config with a value that no run has, on either engine."""
    keys = {rng.choice(DETECTION): odd(rng) for _ in range(rng.choice((1, 1, 2)))}
    note = " ".join(f"{key}={value[:20]!r}" for key, value in keys.items())
    argv = base.train_net(at, keys, rng)
    return Case(argv, f"{argv[4]}: {note}")


def hostile_rows(rng: random.Random, at: Path, base: Base) -> Case:
    """result rows with hostile fields, beside files that they name."""
    run = at / "runs" / "a"
    shutil.copytree(base.detector, run, ignore=shutil.ignore_patterns("*.pth", "events*"))
    row = json.loads((run / "results.jsonl").read_text().splitlines()[0])
    lines, notes = [], []
    for arm in ("random", "moco"):
        tree, note = changed(row, rng, JSON, times=rng.choice((0, 1, 2)))
        if arm == "moco" and isinstance(tree.get("init"), dict):
            tree["init"]["name"] = rng.choice(("moco", *JSON[7:11]))
        if rng.random() < 0.3:
            tree["config"] = rng.choice(TEXTS)
        if rng.random() < 0.3:
            tree["output_dir"] = rng.choice(("../../..", "/dev", "/proc/self", "x" * 5000, "a\n"))
        lines.append(raw_json(tree))
        notes.append(note)
    file = run / "results.jsonl"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    note = "; ".join(notes)
    beside = rng.random()
    if beside < 0.3:
        name = rng.choice(("metrics.jsonl", "predictions.json", "config.yaml", "results.jsonl"))
        special(run / name, kind := rng.choice(SPECIAL[:7]))
        note = f"{name} {kind}"
    elif beside < 0.5:
        found = json.loads((run / "predictions.json").read_text())[:6] or [{"bbox": [0] * 4}]
        tree, note = changed(found, rng, JSON, times=2)
        (run / "predictions.json").write_text(raw_json(tree), errors="surrogatepass")
    return report_tools(rng, at, run, note)


def report_tools(rng: random.Random, at: Path, run: Path, note: str) -> Case:
    tool, out = rng.randrange(6), str(at / "out")
    if tool == 0:
        return Case(["results", "ls", str(run)], note)
    if tool == 1:
        return Case(["results", "show", "a", str(run)], note)
    if tool == 2:
        ending = rng.choice((".csv", ".json", ".tsv"))
        return Case(["results", "export", str(run), "-o", str(at / f"out{ending}")], note, new=True)
    against = ["--against", str(run)] if tool == 3 else []
    return Case(["report", str(run), "-o", out, *against], note, codes=(0, 1, 2))


def logs(rng: random.Random, at: Path, base: Base) -> Case:
    """metrics.jsonl with lines that nobody logs: in reports, and under runs that go on."""
    lines = [json.loads(x) for x in (base.pretrained / "metrics.jsonl").read_text().splitlines()]
    tree, note = changed(lines, rng, JSON, times=rng.choice((1, 2, 5)))
    text = "\n".join(raw_json(line) for line in tree if not isinstance(line, str))
    text += rng.choice(("", "\n", "\n\0\0\0", '\n{"iteration": ', "\n" + next(iter(RAW.values()))))
    data = (text + "\n").encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        (at / "out").mkdir()
        shutil.copy(base.pretrained / "checkpoint.pth", at / "out" / "checkpoint_00000001.pth")
        (at / "out" / "metrics.jsonl").write_bytes(data)
        words = base.pretrain(at, {"SOLVER.MAX_ITER": "1"})
        return Case([words[0], "--resume", *words[1:]], note)
    run = at / "pretrained"
    shutil.copytree(base.pretrained, run, ignore=shutil.ignore_patterns("*.pth", "events*"))
    (run / "metrics.jsonl").write_bytes(data)
    if rng.random() < 0.2:
        name = rng.choice(("metrics.jsonl", "config.yaml"))
        special(run / name, note := rng.choice(SPECIAL[:7]))
    argv = ["report", str(base.detector), "--pretraining", str(run), "-o", str(at / "out")]
    return Case(argv, note)


NUMBERS = (
    *("nan", "inf", "-inf", "-1", "0", "0.5", "1e300", "1e400", "-0", "1e-320", "1" + "0" * 30),
    *("12345678901234567890", "9" * 5000, "", " ", "1_0", "0x10", "٣", "1,2", "1,,2", ",", "0-3"),
)


def reads(read: Callable[[str], Any], text: str) -> bool:
    """Whether argparse takes a text."""
    try:
        read(text)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


def numbers(rng: random.Random, at: Path, base: Base) -> Case:
    """A command that works, but for the value of one option that is a number."""
    file, out = str(base.pretrained / "checkpoint.pth"), str(at / "out")
    sets = ["--train", str(base.images), "--test", str(base.tested), "--size", "32"]
    probe = [file, *sets, "--results", str(at / "rows.jsonl")]
    classifier = ["--workers", "0", "--epochs", "1", "--output", out]
    matrix = ["--suite", "quick", "--no-supervised"]
    photos = ["--input", str(base.images / "cat"), "-o", out]
    argv = rng.choice(
        (
            ["benchmark", *matrix, "--data", base.train, base.test, "--dry-run", "-o", out],
            ["probe", "knn", *probe],
            ["probe", "linear", *probe, *classifier],
            ["probe", "linear-lbfgs", *probe],
            ["probe", "finetune", *probe, *classifier],
            [
                "plan",
                "--config-file",
                "pretrain/quick/moco_v2_r18",
                "--images",
                "9999",
                "--gpus",
                "0",
            ],
            base.quickstart(at),
            [*base.quickstart(at), "--pretrain", "--voc", str(base.voc)],
            ["make-shards", str(base.images), "--output", out],
            ["predict", "--config-file", str(base.detector / "config.yaml"), *photos],
            base.train_net(at, {}, None)[:5],
        )
    )
    parser = importlib.import_module(f"moco_det_tools.{argv[0].replace('-', '_')}").parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[argv[1]]
    kinds = ("int", "float", "whole number")
    options = [
        action
        for action in parser._actions
        if getattr(action.type, "__name__", "") in kinds or action.dest in ("seeds", "gpus")
    ]
    option = rng.choice(options)
    read = option.type if callable(option.type) else str
    taken = [text for text in NUMBERS if reads(read, text)]
    value = rng.choice(taken if rng.random() < 0.8 else NUMBERS)
    name = option.option_strings[-1]
    given = [f"{name}={value}"] if value.startswith("-") else [name, value]
    keys = base.train_net(at, {}, None)[5:] if argv[0] == "train-net" else []
    return Case([*argv, *given, *keys], f"{name} {value[:40]!r}", codes=(0, 1, 2))


def arguments(rng: random.Random, at: Path, base: Base) -> Case:
    """Any tool with hostile values for its own arguments."""
    if rng.random() < 0.5:
        return numbers(rng, at, base)
    name = rng.choice([tool for tool in cli.COMMANDS if tool != "quickstart"])
    parser = importlib.import_module(f"moco_det_tools.{name.replace('-', '_')}").parser()
    argv: list[str] = []
    while True:
        nested: Any = None
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                nested = rng.choice(list(action.choices.items()))
            elif action.option_strings and (action.required or rng.random() < 0.2):
                argv.append(rng.choice(action.option_strings))
                argv += values(action, rng, at, base)
            elif not action.option_strings:
                argv += values(action, rng, at, base)
        if nested is None:
            break
        argv.append(nested[0])
        parser = nested[1]
    if name == "benchmark":
        argv.append("--dry-run")
    return Case([name, *argv], " ".join(map(repr, argv))[:160], codes=(0, 1, 2))


def values(action: argparse.Action, rng: random.Random, at: Path, base: Base) -> list[str]:
    if action.nargs == 0:
        return []
    true = (
        str(base.detector),
        str(base.images),
        str(base.backbone),
        "R18_FPN",
        str(at / "out"),
        "1",
    )
    if action.dest in ("output", "folder", "results"):  # what is written there is asked for
        true = true[-2:-1]
    count = action.nargs if isinstance(action.nargs, int) else 1
    if rng.random() < 0.3 and action.choices:
        return [str(rng.choice(list(action.choices)))] * count
    return [rng.choice(true if rng.random() < 0.6 else WORDS) for _ in range(count)]
