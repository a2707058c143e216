"""What MoCo's momentum does on a tiny problem: losses of the same run with several momenta.

    python benchmarks/momentum.py [--momenta 0 0.9 0.99 0.999] [--steps 400]

The images are smooth random patterns made on the spot, each its own class. Every run has the same
seed, hence the same first weights, images and views; only MOCO.M differs. The MoCo paper's Section
4.1 has the ablation on ImageNet: without momentum training fails, 0.999 is best.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from moco_det_tools.entry import run
from pretrain.config import load_config
from pretrain.train import train

SETTINGS = {
    "ENCODER.ARCH": "resnet18",
    "ENCODER.BN_SPLITS": 8,
    "MOCO.T": 0.1,
    "AUGMENT.RECIPE": "moco_v2_no_blur",
    "AUGMENT.SIZE": 40,
    "AUGMENT.MIN_SCALE": 0.4,
    "DATA.WORKERS": 0,
    "SOLVER.SCHEDULE": "cosine",
    "TENSORBOARD": False,
    "CHECKPOINT_EVERY": 100000,
}


def make_images(folder: Path, count: int) -> None:
    """Patterns of 64 x 64 pixels, as PNG files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3)).astype(np.float32)
        picture = cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:05d}.png"), np.clip(picture, 0, 255).astype(np.uint8))


def rows(momentum: float, args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """What one run logged."""
    pairs = {
        **SETTINGS,
        "DATA.PATH": str(folder / "images"),
        "OUTPUT_DIR": str(folder / f"m{momentum:g}"),
        "ENCODER.HEAD": args.head,
        "MOCO.K": args.negatives,
        "MOCO.M": float(momentum),
        "SOLVER.BATCH": args.batch,
        "SOLVER.LR": args.lr,
        "SOLVER.MAX_ITER": args.steps,
        "LOG_EVERY": max(1, args.steps // 8),
    }
    cfg = load_config(None, [str(part) for pair in pairs.items() for part in pair])
    text = (train(cfg).parent / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def table(found: dict[float, list[dict[str, float]]], chance: float) -> list[str]:
    """Losses by iteration, then the last accuracy and spread of the features."""
    lines = [f"loss; ln(K+1) is {chance:.3f}"]
    lines.append(f"{'iteration':>12}" + "".join(f"{f'm = {m:g}':>12}" for m in found))
    for logged in zip(*found.values(), strict=True):
        losses = "".join(f"{row['loss']:12.3f}" for row in logged)
        lines.append(f"{logged[0]['iteration']:>12}" + losses)
    for key, digits in (("accuracy", 1), ("feature_std", 4)):
        last = "".join(f"{logged[-1][key]:12.{digits}f}" for logged in found.values())
        lines.append(f"{key:>12}" + last)
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Train once a momentum, print one table."""
    p = argparse.ArgumentParser(description="MoCo with several momenta on a tiny problem.")
    p.add_argument("--momenta", type=float, nargs="+", default=[0.0, 0.9, 0.99, 0.999])
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--images", type=int, default=2048)
    p.add_argument("--negatives", type=int, default=1024, help="K, the length of the queue")
    p.add_argument("--head", choices=("fc", "mlp"), default="mlp")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=0.06)
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name) / "images", args.images)
        found = {momentum: rows(momentum, args, Path(name)) for momentum in args.momenta}
    print("\n".join(table(found, math.log(args.negatives + 1))))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
