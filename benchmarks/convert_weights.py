"""Seconds and memory of a conversion with its proof, beside the rename loop without one, in turn.

    python benchmarks/convert_weights.py [--rounds 5] [--architecture resnet50]

Each run is a process of its own that imports torch first: what is counted is beyond that, by the
clock and by the process's CPU time (other work on the machine lengthens the clock's far more), and
the largest resident memory beyond that, as a multiple of the file's size. The loop is the one that
the detection folders of several projects carry: load, keep a prefix, replace words, pickle. It
reads by torch.load without weights_only, checks nothing and writes whatever is left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run

# VmHWM and not getrusage's figure, which a process inherits from the one that started it
MEASURED = """
import json, sys, time
import torch
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
memory, clock, cpu = peak(), time.perf_counter(), time.process_time()
{work}
clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
print(json.dumps([clock, cpu, peak() - memory]))
"""
OURS = """
from moco_det.weights.convert import convert
convert(sys.argv[1], sys.argv[2], overwrite=True)
"""
LOOP = """
import pickle
state = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
state = state["state_dict"] if "state_dict" in state else state
model = {}
for name, tensor in state.items():
    if "encoder_q." not in name and "conv" not in name and "bn" not in name and "down" not in name:
        continue
    if "encoder_k." in name:
        continue
    name = name.replace("module.encoder_q.", "")
    if "layer" not in name:
        name = "stem." + name
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for index in (1, 2, 3):
        name = name.replace(f"bn{index}", f"conv{index}.norm")
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    model[name] = tensor.numpy()
with open(sys.argv[2], "wb") as file:
    pickle.dump({"model": model, "__author__": "loop", "matching_heuristics": True}, file)
"""


def checkpoints(folder: Path, architecture: str) -> dict[str, Path]:
    """A torchvision file, and MoCo's: two encoders, queue, optimizer state and a Namespace."""
    q = torchvision.models.get_model(architecture)
    k = torchvision.models.get_model(architecture)
    torch.save(q.state_dict(), folder / "torchvision.pth")
    table: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, encoder in (("encoder_q", q), ("encoder_k", k)):
        for key, tensor in encoder.state_dict().items():
            table[f"module.{name}.{key}"] = tensor
    table["module.queue"] = torch.randn(128, 65536)
    table["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    buffers = {i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(q.parameters())}
    file = {
        "epoch": 200,
        "arch": architecture,
        "state_dict": table,
        "optimizer": {"state": buffers, "param_groups": [{"lr": 0.03}]},
        "args": Namespace(lr=0.03),
    }
    torch.save(file, folder / "moco.pth.tar")
    return {"torchvision": folder / "torchvision.pth", "moco": folder / "moco.pth.tar"}


def measured(work: str, source: Path, output: Path) -> list[float]:
    """[seconds by the clock, CPU seconds, bytes of memory], each beyond importing torch."""
    command = [sys.executable, "-c", MEASURED.format(work=work), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout.splitlines()[-1])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--rounds", type=int, default=5, help="runs of each; the median is printed")
    parse.add_argument("--architecture", default="resnet50", help="one of torchvision's ResNets")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0."""
    options = parser().parse_args(argv)
    if options.rounds < 1:
        raise InputError(f"--rounds must be at least 1, not {options.rounds}")
    if not Path("/proc/self/status").exists():
        raise InputError(
            "the memory of a process is read from /proc/self/status: run this on Linux"
        )
    rows: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = checkpoints(folder, options.architecture)
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        once = [(kind, way) for kind in files for way in ("ours", "loop")]
        for kind, way in tqdm(once * options.rounds, unit="run"):
            work = OURS if way == "ours" else LOOP
            result = measured(work, files[kind], folder / f"{way}.pkl")
            rows.setdefault((kind, way), []).append(result)
    print(
        f"{options.architecture}, torch {torch.__version__}, medians of {options.rounds} runs, "
        "beyond importing torch"
    )
    head = "".join(f"{word:>10s}" for word in ("seconds", "CPU s", "peak MiB", "x file"))
    print(f"{'file':12s}{'MiB':>6s} {'by':6s}{head}")
    for (kind, way), results in rows.items():
        clock, cpu, memory = (statistics.median(values) for values in zip(*results, strict=True))
        print(
            f"{kind:12s}{sizes[kind] / 2**20:6.0f} {way:6s}{clock:10.2f}{cpu:10.2f}"
            f"{memory / 2**20:10.0f}{memory / sizes[kind]:10.2f}"
        )
    for kind in files:
        print(f"{kind}: ours over the loop, {ratios(rows, kind)}")
    return 0


def ratios(rows: dict[tuple[str, str], list[list[float]]], kind: str) -> str:
    """Medians of the ratios within a round."""
    pairs: list[tuple[Any, Any]] = list(zip(rows[kind, "ours"], rows[kind, "loop"], strict=True))
    texts = []
    for index, what in ((1, "CPU time"), (2, "memory")):
        ratio = statistics.median(ours[index] / max(loop[index], 1e-9) for ours, loop in pairs)
        texts.append(f"{what} {ratio:.2f}")
    return ", ".join(texts)


if __name__ == "__main__":
    raise SystemExit(run(main))
