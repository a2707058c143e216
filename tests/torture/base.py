"""True files of every kind, made once, and the commands that hostile ones go through."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path

import torch

from moco_det.data.scenes import write_scenes
from pretrain.data.listing import list_images
from pretrain.data.shard_files import write_shards
from tests.pretrain.conftest import write_images
from tests.standalone.tiny import KEYS
from tests.torture.attempts import Attempt, Limits
from tests.torture.runs import HALF, PRETRAIN

ENGINES = ["standalone", *(["detectron2"] if importlib.util.find_spec("detectron2") else [])]


def words(keys: Mapping[str, str]) -> list[str]:
    return [text for pair in keys.items() for text in pair]


class Base:
    """The files, below one folder."""

    def __init__(self, root: Path) -> None:
        self.images, self.pretrained = root / "images", root / "pretrained"
        self.detector, self.backbone = root / "standalone", root / "backbone.pkl"
        self.tested = root / "tested"
        write_images(self.images / "cat", 12, seed=1)
        write_images(self.images / "dog", 12, seed=2)
        for seed, name in enumerate(("cat", "dog"), 3):
            write_images(self.tested / name, 4, seed=seed)
        listed = list_images(str(self.images))
        self.shards = write_shards(listed, root / "shards", name="s", shard_mb=1, seed=0)
        made = write_scenes(
            root / "scenes", seed=1, unlabelled=0, train=8, test=4, size=64, progress=False
        )
        self.train, self.test, self.coco = made.train, made.test, made.train_json
        self.coco_images, self.voc = made.train_images, root / "scenes" / "voc"
        self.make(self.pretrain(root, {}, output=self.pretrained), root)
        checkpoint = self.pretrained / "checkpoint.pth"
        self.make(["convert-weights", str(checkpoint), str(self.backbone)], root)
        for suffix in ("safetensors", "pth"):
            self.make(["convert-weights", str(checkpoint), str(root / f"w.{suffix}")], root)
        self.detectors = {}
        for engine in ENGINES:
            output = self.detectors[engine] = root / engine
            self.make(self.train_net(root, {}, None, output=output, engine=engine), root)
        legacy = torch.load(root / "w.pth", weights_only=True)
        torch.save(legacy, root / "old.pth", _use_new_zipfile_serialization=False)
        names = ("w.safetensors", "w.pth", "old.pth", "backbone.pkl")
        self.checkpoints = [*(root / name for name in names), checkpoint]

    def make(self, argv: list[str], root: Path) -> None:
        ended = Attempt(argv, root, limits=Limits(cpu=200, wall=400)).end()
        if ended.code:
            raise SystemExit(f"{argv}: {ended.err}")

    def pretrain(
        self, at: Path, keys: Mapping[str, str], *, output: Path | None = None
    ) -> list[str]:
        """One step of pre-training."""
        own = {
            **PRETRAIN,
            "DATA.PATH": str(self.images),
            "DATA.WORKERS": "0",
            "SOLVER.MAX_ITER": "1",
            "CHECKPOINT_EVERY": "1",
            "OUTPUT_DIR": str(output or at / "out"),
            **keys,
        }
        return ["pretrain", "--config-file", "pretrain/quick/moco_v2_r18", *words(own)]

    def train_net(
        self,
        at: Path,
        keys: Mapping[str, str],
        rng: random.Random | None,
        *,
        output: Path | None = None,
        options: tuple[str, ...] = (),
        engine: str = "standalone",
    ) -> list[str]:
        """One step of fine-tuning, on an engine that `rng` draws."""
        own = {
            **KEYS,
            **HALF,
            "DATASETS.TRAIN": repr((self.train,)),
            "DATASETS.TEST": repr((self.test,)),
            "SOLVER.MAX_ITER": "1",
            "SOLVER.STEPS": "()",
            "OUTPUT_DIR": str(output or at / "out"),
            **keys,
        }
        engine = rng.choice(ENGINES) if rng else engine
        return ["train-net", "--config-file", "R18_FPN", "--engine", engine, *options, *words(own)]

    def quickstart(self, at: Path) -> list[str]:
        """The whole flow with one arm and one step."""
        steps = ["--pretrain-steps", "1", "--finetune-steps", "1", "--seeds", "1"]
        return ["quickstart", "--arms", "random", *steps, "-o", str(at / "out")]
