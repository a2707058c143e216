"""Runs that change their number of processes, beside the one that does not, on the CPU over gloo.

    OMP_NUM_THREADS=1 python benchmarks/changed_processes.py FOLDER

Pre-training over shards and fine-tuning are begun by 4 processes; halfway, copies of each go on in
4 (nothing changes), 2 and 1. The differences are of the loss that is logged, relative to the run
that was never stopped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from moco_det.data.scenes import write_scenes
from moco_det_tools.entry import run
from pretrain.data import list_images
from pretrain.data.shard_files import write_shards

BEGUN, STEPS = 4, 60
SIDE = 64


def launch(tool: str, processes: int, words: list[str]) -> None:
    """A tool under torchrun; its last words where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, f"tools/{tool}.py", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{tool} in {processes} processes: {done.stderr[-2000:]}")


def pretraining(folder: Path, images: Path) -> list[str]:
    """The command of a MoCo run over one shard for each class of pictures."""
    for part in sorted(images.iterdir()):
        listed = list_images(str(part))
        write_shards(listed, folder / "shards" / part.name, name="s", shard_mb=64, seed=0)
    pairs = {
        "DATA.PATH": folder / "shards" / "*" / "s-*.tar",
        "DATA.IMAGES": 256,
        "DATA.SHUFFLE_BUFFER": 32,
        "DATA.WORKERS": 0,
        "ENCODER.ARCH": "resnet18_w0.25x",
        "ENCODER.BN_SPLITS": 0,
        "SOLVER.BATCH": 32,
        "MOCO.K": 128,
        "AUGMENT.SIZE": 32,
        "PRECISION": "float32",
        "DEVICE": "cpu",
        "SOLVER.MAX_ITER": STEPS,
        "CHECKPOINT_EVERY": STEPS // 2,
        "LOG_EVERY": 1,
    }
    words = [str(word) for pair in pairs.items() for word in pair]
    return ["--config-file", "configs/pretrain/quick/moco_v2_r18.yaml", *words]


def fine_tuning(train: str, test: str) -> list[str]:
    """The command of a small FPN detector with masks, BN frozen nowhere."""
    pairs = {
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (test,),
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.FPN.NORM": "SyncBN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "INPUT.MIN_SIZE_TRAIN": (SIDE,),  # one size: how much a process pads changes nothing
        "INPUT.MAX_SIZE_TRAIN": 96,
        "INPUT.MIN_SIZE_TEST": SIDE,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.WARMUP_ITERS": 10,
        "SOLVER.STEPS": (50,),
        "SOLVER.MAX_ITER": STEPS,
        "SOLVER.CHECKPOINT_PERIOD": STEPS // 2,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.PRECISE_BN.NUM_ITER": 2,
        "SEED": 0,
    }
    words = [str(word) for pair in pairs.items() for word in pair]
    return ["--engine", "standalone", "--config-file", "configs/quick/R18_FPN.yaml", *words]


def losses(folder: Path, key: str) -> dict[int, float]:
    """By iteration, of those that are logged."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["iteration"]: line[key] for line in lines if key in line}


def compare(tool: str, folder: Path, words: list[str], key: str, final: str) -> None:
    """Train whole and in parts, and print a line for each number of processes that goes on."""
    whole = folder / "whole"
    launch(tool, BEGUN, [*words, "OUTPUT_DIR", str(whole)])
    expected = losses(whole, key)
    for processes in (BEGUN, 2, 1):
        parts = shutil.copytree(whole, folder / f"then_{processes}")
        (parts / final).unlink()
        (parts / "last_checkpoint").unlink(missing_ok=True)
        launch(tool, processes, ["--resume", *words, "OUTPUT_DIR", str(parts)])
        found = losses(parts, key)
        assert found.keys() == expected.keys()
        later = [i for i in expected if i > STEPS // 2 - (tool == "train_net")]
        off = [abs(found[i] / expected[i] - 1) for i in later]
        means = [sum(row[i] for i in later[-10:]) / len(later[-10:]) for row in (expected, found)]
        same = (parts / final).read_bytes() == (whole / final).read_bytes()
        print(
            f"{tool} {BEGUN} -> {processes}: first step after the change {off[0]:.1e}, "
            f"largest {max(off):.1e}; mean loss at the end {means[0]:.4f} and {means[1]:.4f}"
            f"{'; the same file' if same else ''}"
        )


def main() -> int:
    """Paint, train, print."""
    folder = Path(sys.argv[1])
    painted = write_scenes(
        folder / "scenes", seed=1, unlabelled=256, train=64, test=8, size=SIDE, progress=False
    )
    images = sorted((folder / "scenes" / "unlabelled").rglob("*.*"))
    for number, image in enumerate(images):
        part = folder / "parts" / str(number % 8)
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, part)
    words = pretraining(folder, folder / "parts")
    compare("pretrain", folder / "pretrain", words, "loss", "checkpoint.pth")
    words = fine_tuning(painted.train, painted.test)
    compare("train_net", folder / "train_net", words, "total_loss", "model_final.pth")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
