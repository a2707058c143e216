"""Small runs of every method and both engines: their commands, progress and how they compare."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moco_det.data.scenes import write_scenes
from pretrain.data.listing import list_images
from pretrain.data.shard_files import write_shards
from tests.plugin.conftest import TINY
from tests.pretrain.conftest import write_images
from tests.standalone.tiny import KEYS

ONE_MAP = {"MODEL.ANCHOR_GENERATOR.SIZES": "[[8, 16, 32, 64]]"}
HALF = {"MODEL.RESNETS.STEM_OUT_CHANNELS": "32", "MODEL.RESNETS.RES2_OUT_CHANNELS": "32"}
METHODS: dict[str, dict[str, str]] = {
    "moco v1": {"ENCODER.HEAD": "fc", "AUGMENT.RECIPE": "moco_v1"},
    "moco v2": {},
    "end_to_end": {"METHOD": "end_to_end"},
    "memory_bank": {"METHOD": "memory_bank", "MEMORY_BANK.K": "16"},
    "inst_disc nce": {"METHOD": "inst_disc", "INST_DISC.K": "16", "INST_DISC.Z_MOMENTUM": "0.9"},
    "inst_disc softmax": {"METHOD": "inst_disc", "INST_DISC.LOSS": "softmax"},
    "inst_disc parametric": {"METHOD": "inst_disc", "INST_DISC.LOSS": "parametric"},
    "supervised": {"METHOD": "supervised"},
}
SHARDED = ("moco v1", "moco v2", "end_to_end", "supervised")  # banks need numbered images
DETECTORS: dict[str, tuple[str, dict[str, str]]] = {
    "FPN masks": ("R18_FPN", HALF),
    "FPN boxes": ("R18_FPN", {**HALF, "MODEL.MASK_ON": "False"}),
    "C4 masks": ("own_R18_C4", ONE_MAP),
}
PRETRAIN = {
    "ENCODER.ARCH": "resnet18_w0.5x",
    "ENCODER.BN_SPLITS": "2",
    "ENCODER.DIM": "16",
    "MOCO.K": "24",
    "AUGMENT.SIZE": "32",
    "SOLVER.BATCH": "8",
    "DEVICE": "cpu",
    "PRECISION": "float32",
    "TENSORBOARD": "False",
}
TIMES = {
    *("images_per_second", "data_wait", "time", "data_time", "eta_seconds"),
    *("rank_data_time", "eta"),
}
LITTER = re.compile(r".*\.partial$|.*\.tmp$|^\.(?!claim$).*|^tmp.*")


class Kind(NamedTuple):
    """What a seed runs: `engine` is pretrain, standalone or detectron2."""

    engine: str
    name: str
    source: str

    def __str__(self) -> str:
        return f"{self.engine}: {self.name}, {self.source}"


def kinds() -> list[Kind]:
    """Every method and engine, in a fixed order that mixes them."""
    listed = [Kind("pretrain", name, "listed images") for name in METHODS]
    shards = [Kind("pretrain", name, "shards") for name in SHARDED]
    engines = ("standalone", "detectron2") * 2
    tuned = [Kind(engine, name, "scenes") for name in DETECTORS for engine in engines]
    return sorted(listed + shards + tuned, key=lambda kind: kind.name[::-1])


@dataclass(frozen=True)
class Sources:
    """Data that all runs share: 24 images in two classes, the same as shards, and scenes."""

    images: Path
    shards: str
    scenes: tuple[str, str]


def make_sources(folder: Path) -> Sources:
    for number, name in enumerate(("cat", "dog"), 1):
        write_images(folder / "images" / name, 12, seed=number)
    listed = list_images(str(folder / "images"))
    shards = write_shards(listed, folder / "shards", name="s", shard_mb=1, seed=0)
    paths = write_scenes(
        folder / "scenes", seed=1, unlabelled=0, train=12, test=4, size=64, progress=False
    )
    return Sources(folder / "images", shards, (paths.train, paths.test))


@dataclass(frozen=True)
class TortureRun:
    """One run of a seed: its command goes on where an earlier one stopped."""

    kind: Kind
    total: int
    period: int
    words: tuple[str, ...]

    def argv(self, output: Path) -> list[str]:
        tool = "pretrain" if self.kind.engine == "pretrain" else "train-net"
        return [tool, *self.words, "OUTPUT_DIR", str(output)]


def draw_run(kind: Kind, sources: Sources, rng: random.Random) -> TortureRun:
    """A run of three to five checkpoint periods."""
    period = rng.randint(2, 4)
    total = period * rng.randint(3, 5) - rng.randint(0, 1)
    workers = rng.choice(("0", "0", "0", "1"))
    if kind.engine == "pretrain":
        path = sources.shards if kind.source == "shards" else str(sources.images)
        keys = {
            **PRETRAIN,
            **METHODS[kind.name],
            "DATA.PATH": path,
            "DATA.SHUFFLE_BUFFER": "6",
            "DATA.WORKERS": workers,
            "CHECKPOINT_EVERY": str(period),
            "SOLVER.MAX_ITER": str(total),
            "LOG_EVERY": str(rng.randint(1, 4)),
            "SEED": str(rng.randint(0, 99)),
        }
        if rng.random() < 0.5:
            keys |= {"KNN.TRAIN": str(sources.images), "KNN.EVERY": "1", "KNN.SIZE": "32"}
        config, options = "pretrain/quick/moco_v2_r18", ["--resume"]
    else:
        config, own = DETECTORS[kind.name]
        keys = {
            **(KEYS if kind.engine == "standalone" else TINY),
            **own,
            "DATASETS.TRAIN": repr((sources.scenes[0],)),
            "DATASETS.TEST": repr((sources.scenes[1],)),
            "DATALOADER.NUM_WORKERS": workers,
            "SOLVER.CHECKPOINT_PERIOD": str(period),
            "SOLVER.MAX_ITER": str(total),
            "SOLVER.STEPS": f"({total - 2},)",
            "TEST.EVAL_PERIOD": str(rng.choice((0, period + 1))),
            "SEED": str(rng.randint(0, 99)),
        }
        options = ["--resume", "--engine", kind.engine]
    words = [text for pair in keys.items() for text in pair]
    return TortureRun(kind, total, period, ("--config-file", config, *options, *words))


def progress(folder: Path) -> int:
    """Steps of the newest whole checkpoint, 0 where there is none."""
    done = 0
    for path in folder.glob("*.pth"):
        with contextlib.suppress(Exception):  # torn by a kill: the run passes over it as well
            content = torch.load(path, map_location="cpu", weights_only=True)
            state = content.get("state")
            done = max(done, state["iteration"] if state else content["iteration"] + 1)
    return done


def final(folder: Path, engine: str) -> Any:
    """What of a finished run's last checkpoint must be equal."""
    name = "checkpoint.pth" if engine == "pretrain" else "model_final.pth"
    content = torch.load(folder / name, map_location="cpu", weights_only=True)
    if engine == "detectron2":
        return content["model"]
    left_out = ("config",) if engine == "pretrain" else ("seconds",)
    return {key: value for key, value in content.items() if key not in left_out}


def same(a: Any, b: Any) -> bool:
    """Bit-equal, whatever the nesting."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a jsonl file without what says how long things took."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMES} for row in found]


def same_order(whole: Path, parts: Path) -> bool:
    """Whether the last training of each step had the batch of the uninterrupted run."""
    return _batches(whole) == _batches(parts)


def _batches(path: Path) -> dict[int, Sequence[str]]:
    return {row[0]: row[1:] for row in map(json.loads, path.read_text().splitlines())}


def litter(folder: Path) -> list[str]:
    return [p.name for p in sorted(folder.rglob("*")) if LITTER.match(p.name)]
