"""Hostile checkpoints: damaged, of wrong entries, executing and too large."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.torture.base import ENGINES, Base
from tests.torture.values import HTML, SPECIAL, Case, changed, damaged, special

ENTRIES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        10**12,
        1e400,
        float("nan"),
        "",
        "x",
        HTML[0],
        b"x",
        [],
        {},
        [[]],
        {"a": 1},
    ),
    *(torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(True)),
    *(torch.full((4,), float("nan")), torch.zeros(1).expand(10**9), torch.tensor([2**62])),
)


# of a detector's checkpoint, in which entries are changed
PARTS: dict[str, list[tuple[str, ...]]] = {
    "standalone": [(), (), ("model",), ("optimizer",)],
    "detectron2": [
        *((), ("model",), ("trainer",), ("trainer", "hooks", "RunState")),
        *(("trainer", "_trainer"), ("trainer", "_trainer", "optimizer", "state")),
    ],
}


class Executes:
    """A pickle of this leaves a file where it is loaded with pickle's own reader."""

    def __init__(self, way: int) -> None:
        self.way = way

    def __reduce__(self) -> Any:
        calls = [
            (os.system, ("touch canary",)),
            (exec, ("open('canary', 'w')",)),
            (eval, ("open('canary', 'w')",)),
            (open, ("canary", "w")),
            (os.mkdir, ("canary",)),
            (shutil.copy, ("/etc/hostname", "canary")),
        ]
        return calls[self.way]


def checkpoint_tools(rng: random.Random, at: Path, base: Base, file: Path, note: str) -> Case:
    """A checkpoint at each door that opens one."""
    out, config = str(at / "out"), str(base.detector / "config.yaml")
    tool = rng.randrange(8)
    if tool == 0:
        return Case(["convert-weights", str(file)], note)
    if tool == 1:
        return Case(["convert-weights", str(file), str(at / "out.pkl")], note, new=True)
    if tool == 2:
        sets = ["--train", str(base.images), "--test", str(base.images), "--size", "32"]
        return Case(["probe", "knn", str(file), *sets, "--results", str(at / "rows.jsonl")], note)
    if tool == 3:
        images = ["--input", str(base.images / "cat"), "-o", out]
        return Case(["predict", "--config-file", config, "--weights", str(file), *images], note,
                    new=True)  # fmt: skip
    if tool == 4:
        arm = ["--suite", "quick", "--weights", f"a={file}", "--dry-run", "-o", out]
        return Case(["benchmark", *arm], note)
    if tool == 5:
        return Case(["export", config, "--weights", str(file), "-o", str(at / "out.pt2")], note,
                    new=True)  # fmt: skip
    return Case(base.train_net(at, {"MODEL.WEIGHTS": str(file)}, rng), note)


def checkpoints(rng: random.Random, at: Path, base: Base) -> Case:
    """Damaged files of every container, and what is no file at all."""
    source = rng.choice([*base.checkpoints, base.detector / "model_final.pth"])
    file = at / f"x{source.suffix}"
    if rng.random() < 0.15:
        note = rng.choice(SPECIAL)
        file = Path(special(file, note))
    else:
        data, note = damaged(source.read_bytes(), rng)
        file.write_bytes(data)
    return checkpoint_tools(rng, at, base, file, f"{source.name} {note}")


def entries_of_pretraining(rng: random.Random, at: Path, base: Base) -> Case:
    """A checkpoint of the right format whose entries are not, resumed or read."""
    content = torch.load(base.pretrained / "checkpoint.pth", weights_only=True)
    content["state"] |= {"iteration": 1, "total": 2}
    content["config"]["SOLVER"]["MAX_ITER"] = 2
    content["config"]["OUTPUT_DIR"] = str(at / "out")
    part = rng.choice((None, "state", "config", "encoder"))
    tree = content if part is None else content[part]
    tree, note = changed(dict(tree), rng, ENTRIES, times=rng.choice((1, 1, 2)))
    content = tree if part is None else {**content, part: tree}
    if rng.random() < 0.6:
        (at / "out").mkdir()
        torch.save(content, at / "out" / "checkpoint_00000001.pth")
        words = base.pretrain(at, {"SOLVER.MAX_ITER": "2"})
        return Case([words[0], "--resume", *words[1:]], f"{part}: {note}")
    torch.save(content, at / "x.pth")
    return checkpoint_tools(rng, at, base, at / "x.pth", f"{part}: {note}")


def entries_of_detectors(rng: random.Random, at: Path, base: Base) -> Case:
    """A detector's checkpoint with wrong entries, resumed, scored or exported."""
    engine = rng.choice(ENGINES)
    content = torch.load(base.detectors[engine] / "model_final.pth", weights_only=True)
    part = rng.choice(PARTS[engine])
    node, last = content, content
    for key in part:
        node, last = node[key], node
    tree, note = changed(dict(node), rng, ENTRIES, times=rng.choice((1, 1, 2)))
    if part:
        last[part[-1]] = tree
    else:
        content = tree
    note = f"{engine} {'.'.join(part)}: {note}"
    if rng.random() < 0.6:
        shutil.copytree(base.detectors[engine], at / "out")
        (at / "out" / "results.jsonl").unlink()
        (at / "out" / "model_final.pth").unlink()
        torch.save(content, at / "out" / "model_0000000.pth")
        odd = ("../x", "", "\x00", "/dev/zero", "a" * 400, "\udcff")
        pointer = "model_0000000.pth" if rng.random() < 0.8 else rng.choice(odd)
        (at / "out" / "last_checkpoint").write_text(pointer, errors="surrogateescape")
        keys = {"SOLVER.MAX_ITER": "2"}
        options = ("--resume", *rng.choice(((), ("--eval-only",))))
        drawn = rng if rng.random() < 0.1 else None
        argv = base.train_net(at, keys, drawn, options=options, engine=engine)
        return Case(argv, f"{note}; {pointer[:20]!r}")
    torch.save(content, at / "x.pth")
    return checkpoint_tools(rng, at, base, at / "x.pth", note)


def executing(rng: random.Random, at: Path, base: Base) -> Case:
    """Pickles that run something, in every container that holds a pickle."""
    way, box = rng.randrange(6), rng.randrange(5)
    file = at / ("x.pth", "x.pkl", "x.pth", "x.npz", "x.pth.tar")[box]
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "x": Executes(way)}
    if box == 0:
        torch.save(content, file)
    elif box == 1:
        content = {"model": {"stem.conv1.weight": np.zeros(1)}, "__author__": Executes(way)}
        file.write_bytes(pickle.dumps(content, protocol=rng.choice((0, 2, 4))))
    elif box == 2:
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif box == 3:
        np.savez(file, a=np.array([Executes(way)], dtype=object))
    else:
        stream = io.BytesIO()
        pickle.dump(Executes(way), stream, protocol=2)
        file.write_bytes(stream.getvalue())
    note = f"way {way} in {file.name}"
    if rng.random() < 0.3:
        engine = rng.choice(("pretrain", "detector"))
        name = "checkpoint_00000001.pth" if engine == "pretrain" else "model_0000000.pth"
        (at / "out").mkdir()
        shutil.copy(file, at / "out" / name)
        (at / "out" / "last_checkpoint").write_text(name)
        if engine == "pretrain":
            words = base.pretrain(at, {})
            return Case([words[0], "--resume", *words[1:]], note)
        return Case(base.train_net(at, {}, rng, options=("--resume",)), note)
    return checkpoint_tools(rng, at, base, file, note)


def bombs(rng: random.Random, at: Path, base: Base) -> Case:
    """Files that are larger inside than outside."""
    way = rng.choice(("zip", "entries", "memo", "nest", "claims", "npz", "sparse", "header"))
    file = at / "x.pth"
    if way in ("zip", "npz"):
        file = at / ("x.pth" if way == "zip" else "x.npz")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            name = "archive/data.pkl" if way == "zip" else "a.npy"
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(rng.choice((300, 2000))):
                    member.write(bytes(2**20))
    elif way == "entries":
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(50_000):
                archive.writestr(f"archive/data/{number}", b"")
    elif way == "memo":  # a tuple of tuples of tuples ..., each twice the one before
        text = b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * rng.choice((30, 5000)) + b"."
        file.write_bytes(text)
    elif way == "nest":
        file.write_bytes(b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".")
    elif way == "claims":
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1).expand(10**11)}}, file)
    elif way == "sparse":
        with open(file, "wb") as sparse:
            sparse.write(b"\x80\x02\x8e" + struct.pack("<Q", 2**36))
            sparse.truncate(2**36)
    else:
        file = at / "x.safetensors"
        size = rng.choice((2**40, 2**63, 10**8))
        file.write_bytes(struct.pack("<Q", size) + b'{"a":' + b"[" * 10_000)
    if rng.random() < 0.3:
        (at / "out").mkdir()
        shutil.move(file, at / "out" / "checkpoint_00000001.pth")
        words = base.pretrain(at, {})
        return Case([words[0], "--resume", *words[1:]], way)
    return checkpoint_tools(rng, at, base, file, way)
