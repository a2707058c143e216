"""What compare_commits.py runs in each of two commits: command lines over made-up inputs.

The cases use the stable doors alone: command lines, yaml keys and file formats. Nothing of the
project is imported, so the same cases run in a commit whose modules have other names.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
Step = str | Callable[[], None]  # a command line, or a function called in the commit's folder

# Inputs -----------------------------------------------------------------------------------------

CLASSES = ("disk", "square", "triangle")


def paint(split: str, count: int, rng: np.random.Generator) -> None:
    """Scenes of up to three shapes, as VOC and as COCO, and their objects in class folders."""
    voc = Path("data/voc")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        name, width, height = f"{split}_{i:03}", 96 + 8 * (i % 4), 96 - 8 * (i % 3)
        noise = rng.integers(60, 120, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
        xml = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        for label in rng.permutation(3)[: (i + 1) % 4].tolist():  # every fourth has none
            side = int(rng.integers(20, 44))
            x, y = int(rng.integers(2, width - side - 2)), int(rng.integers(2, height - side - 2))
            turns = np.arange((12, 4, 3)[label]) * 2 * np.pi / (12, 4, 3)[label] + np.pi / 4
            corners = np.stack(
                [x + side / 2 * (1 + np.cos(turns)), y + side / 2 * (1 + np.sin(turns))]
            )
            outline = corners.T.round(1)
            colour = tuple(rng.integers(100, 256, 3).tolist())
            ImageDraw.Draw(image).polygon([tuple(p) for p in outline.tolist()], fill=colour)
            (x0, y0), (x1, y1) = outline.min(0).tolist(), outline.max(0).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0) * 0.7,
                    "iscrowd": 0,
                    "segmentation": [outline.reshape(-1).tolist()],
                }
            )
            xml += (
                f"<object><name>{CLASSES[label]}</name><difficult>{int(side < 24)}</difficult>"
                f"<bndbox><xmin>{x0 + 1:.0f}</xmin><ymin>{y0 + 1:.0f}</ymin>"
                f"<xmax>{x1:.0f}</xmax><ymax>{y1:.0f}</ymax></bndbox></object>"
            )
            crops = Path("data/crops", split, CLASSES[label])
            crops.mkdir(parents=True, exist_ok=True)
            image.crop((x, y, x + side, y + side)).save(crops / f"{name}.png")
        image.save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
        (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{xml}</annotation>")
        images.append({"id": i + 1, "file_name": f"{name}.jpg", "width": width, "height": height})
    names = "\n".join(image["file_name"][:-4] for image in images)
    (voc / f"ImageSets/Main/{split}.txt").write_text(names + "\n")
    if split == "test":  # a crowd over the left half of the first image
        half = [images[0]["height"] * images[0]["width"] // 2] * 2
        crowd = {"size": [images[0]["height"], images[0]["width"]], "counts": [0, *half]}
        box = [0, 0, images[0]["width"] / 2, images[0]["height"]]
        annotations.append(
            {**annotations[0], "id": len(annotations) + 1, "image_id": 1, "iscrowd": 1}
            | {"segmentation": crowd, "bbox": box, "area": half[0]}
        )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    Path(f"data/{split}.json").write_text(json.dumps(coco))


def write_checkpoints() -> None:
    """One ResNet-18 of seeded numbers in the layouts of several libraries."""
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, tensor in torchvision.models.resnet18().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = 0.5 + noise.abs()
        elif tensor.dim() == 4:
            state[name] = noise * (1.1 / tensor[0].numel()) ** 0.5
        else:
            state[name] = 0.6 * name.endswith("weight") * (tensor.dim() == 1) + 0.1 * noise
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    moco = {
        f"module.encoder_{encoder}.{name}": tensor * (1 if encoder == "q" else 0.9)
        for encoder in "qk"
        for name, tensor in state.items()
    }
    moco |= {"module.queue": torch.zeros(1000, 16), "module.queue_ptr": torch.zeros(1).long()}
    dino = {f"module.backbone.{name}": tensor for name, tensor in trunk.items()}
    files: dict[str, Any] = {
        "torchvision": state,
        "training": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "moco": {"epoch": 200, "arch": "resnet18", "state_dict": moco},
        "dino": {"student": dino, "teacher": {n: 0.9 * t for n, t in dino.items()}, "epoch": 1},
        "lemniscate": {
            "arch": "resnet18",
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
            "lemniscate": torch.zeros(8, 1000),
        },
    }
    for name, content in files.items():
        torch.save(content, f"data/{name}.pth")
    save_file(state, "data/timm.safetensors")


def prepare() -> None:
    """All inputs, in data/ of the current folder."""
    rng = np.random.default_rng(0)
    paint("train", 24, rng)
    paint("test", 12, rng)
    write_checkpoints()
    shutil.copy(ROOT / "docs/data/knn_caltech101.jsonl", "data")  # rows of real runs


# Cases ------------------------------------------------------------------------------------------

TRAIN, TEST = (
    f"coco://data/{split}.json?images=data/voc/JPEGImages" for split in ("train", "test")
)
TINY_ENCODER = (
    "DEVICE cpu PRECISION float32 TENSORBOARD False ENCODER.ARCH resnet18_w0.25x ENCODER.DIM 16 "
    "ENCODER.BN_SPLITS 2 AUGMENT.SIZE 32 DATA.WORKERS 0 DATA.SHORTER_SIDE 48 SOLVER.BATCH 16 "
    "LOG_EVERY 1 MOCO.K 32 MEMORY_BANK.K 16 INST_DISC.K 16"
)
TINY_DETECTOR = (
    "MODEL.DEVICE cpu MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "TEST.DETECTIONS_PER_IMAGE 40 TEST.PRECISE_BN.NUM_ITER 2 SOLVER.AMP.ENABLED False "
    "SOLVER.WARMUP_ITERS 1 INPUT.MIN_SIZE_TRAIN '(80,96)' INPUT.MAX_SIZE_TRAIN 128 "
    "INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 128"
)


def pretrain(name: str, config: str = "moco_v2_r18", keys: str = "", steps: int = 3) -> str:
    path = "" if "DATA.PATH" in keys else f"DATA.PATH '{TRAIN}'"
    return (
        f"pretrain --config-file configs/pretrain/quick/{config}.yaml {TINY_ENCODER} {path} "
        f"SOLVER.MAX_ITER {steps} OUTPUT_DIR out/{name} {keys}"
    )


def detect(
    name: str, config: str, keys: str = "", *, engine: str = "standalone", steps: int = 3
) -> str:
    voc = "voc://data/voc?split="
    train, test = (voc + "train", voc + "test") if "MASK_ON False" in keys else (TRAIN, TEST)
    return (
        f"train_net --engine {engine} --config-file configs/quick/{config}.yaml {TINY_DETECTOR} "
        f"SEED 3 SOLVER.MAX_ITER {steps} SOLVER.STEPS '({steps - 1},)' OUTPUT_DIR out/{name} "
        f"DATASETS.TRAIN \"('{train}',)\" DATASETS.TEST \"('{test}',)\" {keys}"
    )


def probe(protocol: str, options: str = "") -> str:
    return (
        f"probe {protocol} out/encoder/checkpoint.pth --train data/crops/train --test "
        f"data/crops/test --size 32 --device cpu --precision float32 --batch 8 {options} "
        "--results out/results.jsonl"
    )


def make_rows() -> None:
    """Rows with numbers worth a table: those of the suite with other arms, seeds and APs."""
    rng = random.Random(0)
    lines = Path("out/suite/results.jsonl").read_text().splitlines()
    pattern = next(row for row in map(json.loads, lines) if row["status"] == "finished")
    for file, gain in (("old", 0.0), ("new", 2.0)):
        rows = []
        for arm, base in (("random", 20.0), ("supervised", 30.0), ("moco", 31.0 + gain)):
            for seed in range(5):
                row = json.loads(json.dumps(pattern))
                row |= {"seed": seed, "run": f"{arm}_{seed}", "output_dir": f"{arm}_{seed}"}
                row["init"]["name"] = arm
                for metrics in row["metrics"].values():
                    metrics |= {key: base + rng.gauss(0, 1) for key in ("AP", "AP50", "AP75")}
                rows.append(json.dumps(row))
        Path(f"out/{file}.jsonl").write_text("\n".join(rows) + "\n")


def copy_pretrained() -> None:
    shutil.copytree("out/whole", "out/resumed")
    for file in ("checkpoint.pth", "checkpoint_00000004.pth"):
        Path("out/resumed", file).unlink(missing_ok=True)


SHARDS = "DATA.PATH 'data/shards/x-{000000..000000}.tar' DATA.IMAGES 24 DATA.SHUFFLE_BUFFER 8"
WATCH = "KNN.TRAIN data/crops/train KNN.TEST data/crops/test KNN.EVERY 1 KNN.K 3 KNN.SIZE 32"
BACKBONE = "data/backbone.pkl"

CASES: dict[str, list[Step]] = {
    "pretrain/moco_v1": [pretrain("moco", keys="ENCODER.HEAD fc AUGMENT.RECIPE moco_v1")],
    "pretrain/moco_v2": [pretrain("moco", keys=f"AUGMENT.RECIPE moco_v2 {WATCH}", steps=4)],
    "pretrain/accumulate": [pretrain("moco", keys="SOLVER.ACCUMULATE 2 MOCO.SHUFFLE False")],
    "pretrain/end_to_end": [
        pretrain("two", "end_to_end_r18"),
        pretrain("shared", "end_to_end_r18", "END_TO_END.SHARED True"),
    ],
    "pretrain/memory_bank": [
        pretrain("quick", "memory_bank_r18"),
        pretrain(
            "paper", "memory_bank_r18", "MEMORY_BANK.SHARED_NEGATIVES False BANK.SKIP_UNSEEN False"
        ),
    ],
    "pretrain/inst_disc": [
        pretrain("nce", "inst_disc_r18"),
        pretrain("softmax", "inst_disc_r18", "INST_DISC.LOSS softmax BANK.DTYPE float16"),
        pretrain("parametric", "inst_disc_r18", "INST_DISC.LOSS parametric"),
        pretrain("proximal", "inst_disc_r18", "INST_DISC.PROXIMAL 30.0 BANK.MOMENTUM 0.0"),
    ],
    "pretrain/supervised": [pretrain("sup", "supervised_r18", "DATA.PATH data/crops/train")],
    "pretrain/schedules": [
        pretrain("step", keys="SOLVER.SCHEDULE step SOLVER.MILESTONES [2]"),
        pretrain("exp", keys="SOLVER.SCHEDULE exponential SOLVER.GAMMA_EVERY 1 DATA.CACHE_MB 0"),
    ],
    "pretrain/on_device": [pretrain("moco", keys="DATA.ON_DEVICE True AUGMENT.RECIPE moco_v2")],
    "pretrain/voc": [pretrain("moco", keys="DATA.PATH 'voc://data/voc?split=train'")],
    "pretrain/shards": [
        f"make_shards '{TRAIN}' --output data/shards --name x --seed 1",
        pretrain("moco", keys=SHARDS),
        "cp -r data/shards out/shards",
    ],
    "pretrain/resume": [
        pretrain("whole", keys="CHECKPOINT_EVERY 2", steps=4),
        copy_pretrained,
        pretrain("resumed", keys="CHECKPOINT_EVERY 2", steps=4).replace("n -", "n --resume -", 1),
    ],
    "pretrain/two_processes": [
        pretrain("moco").replace("pretrain", "torchrun --nproc_per_node 2 tools/pretrain.py", 1)
    ],
    "probes": [
        pretrain("encoder"),
        probe("knn", "--k 3"),
        probe("knn", "--k 3 --features head --name head"),
        probe("linear", "--epochs 2 --workers 0 --milestones 1"),
        probe("linear-lbfgs"),
        probe("finetune", "--epochs 2 --workers 0 --schedule cosine"),
        "report out/results.jsonl -o out/report",
    ],
    "conversions": [
        *(
            f"convert_weights data/{name} out/{name.split('.')[0]}{suffix}"
            for name in ("torchvision.pth", "moco.pth", "timm.safetensors")
            for suffix in (".pkl", ".safetensors")
        ),
        "convert_weights data/moco.pth out/key.pkl --encoder key",
        "convert_weights data/training.pth out/training.pkl",
        "convert_weights data/dino.pth out/dino.pkl",
        "convert_weights data/lemniscate.pth out/lemniscate.pkl",
        "convert_weights out/moco.pkl out/back.pth",
        "convert_weights out/moco.pkl out/back.safetensors --to timm",
        "convert_weights data/moco.pth --inspect --json > out/inspect.json",
    ],
    "detector/fpn_box": [detect("voc", "own_R18_w0.5x_FPN", "MODEL.MASK_ON False", steps=30)],
    "detector/fpn_mask": [
        detect("coco", "R18_FPN", f"MODEL.WEIGHTS {BACKBONE}"),
        "predict --config-file out/coco/config.yaml --input data/voc/JPEGImages/test_00[0-3].jpg "
        "-o out/drawn --confidence-threshold 0.1",
        detect("scored", "R18_FPN", "MODEL.WEIGHTS out/coco/model_final.pth").replace(
            "net", "net --eval-only", 1
        ),
    ],
    "detector/fpn_random": [detect("random", "own_R18_w0.5x_FPN", steps=30)],
    "detector/fpn_bitmask": [
        detect("bitmask", "R18_FPN", f"INPUT.MASK_FORMAT bitmask MODEL.WEIGHTS {BACKBONE}")
    ],
    "detector/fpn_options": [
        detect(
            "options",
            "R18_FPN",
            f"MODEL.WEIGHTS {BACKBONE} MODEL.BACKBONE.FREEZE_AT 2 "
            "MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' "
            "TEST.PRECISE_BN.ENABLED False SOLVER.LR_SCHEDULER_NAME WarmupCosineLR "
            "SOLVER.CLIP_GRADIENTS.ENABLED True TEST.EVAL_PERIOD 2 SOLVER.CHECKPOINT_PERIOD 2",
        )
    ],
    "detector/c4": [detect("c4", "own_R18_C4", f"MODEL.WEIGHTS {BACKBONE}")],
    "detector/dc5": [detect("dc5", "own_R50_DC5", "MODEL.MASK_ON False SOLVER.IMS_PER_BATCH 2")],
    "detector/resume": [
        detect("run", "R18_FPN", f"MODEL.WEIGHTS {BACKBONE} SOLVER.CHECKPOINT_PERIOD 2"),
        "rm out/run/model_final.pth",
        "echo model_0000001.pth > out/run/last_checkpoint",
        detect("run", "R18_FPN", f"MODEL.WEIGHTS {BACKBONE} SOLVER.CHECKPOINT_PERIOD 2").replace(
            "net", "net --resume", 1
        ),
    ],
    "detectron2/fpn": [detect("fpn", "R18_FPN", f"MODEL.WEIGHTS {BACKBONE}", engine="detectron2")],
    "detectron2/c4": [detect("c4", "own_R18_C4", f"MODEL.WEIGHTS {BACKBONE}", engine="detectron2")],
    "suite": [
        f"benchmark --suite quick --weights moco=data/backbone.pkl --no-supervised --seeds 2 "
        f"--engine standalone --data '{TRAIN}' '{TEST}' --at-once 1 -o out/suite --set "
        + " --set ".join(re.findall(r"\S+ \S+", TINY_DETECTOR))
        + " --set SOLVER.MAX_ITER 3 --set SOLVER.STEPS '(2,)' --set TEST.EVAL_PERIOD 2",
        "results ls out/suite > out/ls.txt",
        "results export out/suite -o out/rows.csv",
        pretrain("watched", keys=WATCH),
        make_rows,
        "report out/new.jsonl -o out/report --pretraining out/watched",
        "report out/old.jsonl --against out/new.jsonl -o out/against; test $? -le 1",
        "report data/knn_caltech101.jsonl -o out/stored",
    ],
    "quickstart": ["quickstart -o out/quick --arms random moco --finetune-steps 2 --seeds 1"],
    "matched": [
        "check_matched "
        + " ".join(f"configs/{stem}_{arm}.yaml" for arm in ("random", "sup", "moco"))
        + f" --without-weights --engine standalone > out/{stem}.txt"
        for stem in ("coco_R50_FPN_2x", "voc_R50_C4_24k", "voc_R50_DC5_24k")
    ],
    "plan": [
        f"plan --config-file configs/pretrain/{config}.yaml --images 1281167 --gpus 8 --memory 32 "
        f"--host-memory 64 --rate 150 > out/{config}.txt"
        for config in ("moco_v1_r50_in1m_200ep", "memory_bank_r50_in1m_200ep")
    ],
    "demo": ["quickstart -o out/demo"],
}
