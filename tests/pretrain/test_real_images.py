from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from pretrain import augment, data
from pretrain.config import load_config
from pretrain.data.shard_files import list_shards, write_shards
from pretrain.images import read_image
from pretrain.train import train

QUICK = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "quick"


@pytest.mark.parametrize("name", ["moco_v2_r18", "supervised_r18"])
def test_both_quick_arms_run_on_real_photos(
    name: str, data_root: Path, tiny: list[str], tmp_path: Path
) -> None:
    archive = data_root / "pretrain" / "caltech101_96.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with zipfile.ZipFile(archive) as photos:
        names = [n for n in photos.namelist() if n.startswith(("train/000/", "train/001/"))]
        photos.extractall(tmp_path, names[:40] + names[-40:])
    pairs = ["DATA.PATH", str(tmp_path / "train"), "SOLVER.MAX_ITER", "2"]
    path = train(load_config(QUICK / f"{name}.yaml", [*tiny, *pairs]))
    (row,) = map(json.loads, (path.parent / "metrics.jsonl").read_text().splitlines())
    assert row["iteration"] == 2 and row["feature_std"] > 0


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("voc://{root}/voc_bccd?split=train", 205),
        ("voc://{root}/voc_bccd?split=test", 72),
        ("voc://{root}/voc2012_sample?split=val", 50),
        ("coco://{coco}/annotations/instances_train2017.json?images={coco}/train2017", 88),
        ("coco://{coco}/annotations/instances_val2017.json?images={coco}/val2017", 64),
    ],
)
def test_real_detection_sets_are_listed_and_open(path: str, count: int, data_root: Path) -> None:
    images = data.list_images(path.format(root=data_root, coco=data_root / "coco2017_sample"))
    assert len(images) == len(set(images.paths)) == count
    for photo in images.paths[:: count // 5]:
        assert read_image(photo).ndim == 3


def test_real_photos_train_alike_from_a_folder_and_from_shards(
    data_root: Path, tmp_path: Path
) -> None:
    listed = data.list_images(f"voc://{data_root / 'voc2012_sample'}?split=train")
    path = write_shards(listed, tmp_path / "shards", name="voc", shard_mb=1, seed=0)
    assert len(list_shards(path).urls) > 1
    spec = data.ViewSpec(augment.RECIPES["moco_v2"], size=64, views=2, seed=0)
    args = data.DataArgs(PATH=path, CACHE_MB=0)
    source = data.open_data(args, spec, batch=1, device=torch.device("cpu"))
    batches = list(source.make_loader(batch=10, start=0, stop=5, workers=1, pin=False))
    assert sorted(int(i) for raw in batches for i in raw.indices) == list(range(50))
    assert not source.corrupt.names and all(raw.pixels.float().std() > 20 for raw in batches)
