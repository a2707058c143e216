"""Runs that are refused before they begin: one line that names the thing, and nothing written."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation import atomic
from moco_det.foundation.checkpoints import save_checkpoint
from moco_det.foundation.errors import InputError
from pretrain import checkpoints, train
from pretrain.config import load_config
from pretrain.plan import make_plan

from .conftest import write_images

QUICK = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"


def config(tiny: list[str], *pairs: object) -> Any:
    return load_config(QUICK, [*tiny, *map(str, pairs)])


def source_of_three(kind: str, root: Path) -> list[object]:
    """KEY VALUE pairs that name a source of three images."""
    images = root / "JPEGImages"
    write_images(images, 3)
    names = sorted(path.name for path in images.iterdir())
    if kind == "folder":
        return ["DATA.PATH", images]
    if kind == "list":
        (root / "list.txt").write_text("".join(f"JPEGImages/{name}\n" for name in names))
        return ["DATA.PATH", root / "list.txt"]
    if kind == "voc":
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("000\n001\n002\n")
        return ["DATA.PATH", f"voc://{root}?split=train"]
    if kind == "coco":
        records = [{"file_name": name} for name in names]
        (root / "coco.json").write_text(json.dumps({"images": records}))
        return ["DATA.PATH", f"coco://{root / 'coco.json'}?images={images}"]
    with tarfile.open(root / "a-000000.tar", "w") as shard:
        for name in names:
            shard.add(images / name, name)
    if kind == "shards with an index":
        (root / "shards.json").write_text(json.dumps({"shards": {"a-000000.tar": 3}}))
        return ["DATA.PATH", root / "a-000000.tar"]
    return ["DATA.PATH", root / "a-000000.tar", "DATA.IMAGES", 3]


KINDS = ["folder", "list", "voc", "coco", "shards with an index", "shards with DATA.IMAGES"]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_images_than_a_batch_are_refused(kind: str, tiny: list[str], tmp_path: Path) -> None:
    cfg = config(tiny, *source_of_three(kind, tmp_path))
    with pytest.raises(InputError, match=r"3 images, fewer than the 8 of SOLVER\.BATCH: .*add"):
        train.train(cfg)
    assert not (tmp_path / "run").exists()


def test_the_keys_that_fewer_images_than_a_batch_are_offered_are_enough(
    tiny: list[str], tmp_path: Path
) -> None:
    many = ["ENCODER.BN_SPLITS", 4, "MOCO.K", 16, "SOLVER.MAX_ITER", 1]
    folder = source_of_three("folder", tmp_path)
    with pytest.raises(InputError) as error:
        train.train(config(tiny, *folder, *many))
    _, _, keys = str(error.value).partition(", or add ")
    assert train.train(config(tiny, *folder, *many, *keys.split())).is_file()


def test_as_many_images_as_a_batch_are_enough(tiny: list[str], tmp_path: Path) -> None:
    write_images(tmp_path / "images", 8)
    cfg = config(tiny, "DATA.PATH", tmp_path / "images", "MOCO.K", 8, "SOLVER.MAX_ITER", 1)
    assert train.train(cfg).is_file()


def test_a_plan_refuses_fewer_images_than_a_batch(tiny: list[str]) -> None:
    with pytest.raises(InputError, match=r"7 images, fewer than the 8 of SOLVER\.BATCH"):
        make_plan(config(tiny), images=7, gpus=0)


@pytest.mark.parametrize(
    "marks", ["['a', 2]", "[0, 2]", "[-1]", "[2, 1]", "[1, 1]", "[1.5]", "[[1]]"]
)
def test_milestones_that_are_no_rising_whole_numbers_are_refused(
    marks: str, tiny: list[str]
) -> None:
    with pytest.raises(InputError, match=r"SOLVER\.MILESTONES is .*above the one before"):
        config(tiny, "SOLVER.SCHEDULE", "step", "SOLVER.MILESTONES", marks)


@pytest.mark.parametrize("key", ["SOLVER.LR", "MOCO.T", "SOLVER.WEIGHT_DECAY", "KNN.EVERY"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: str, tiny: list[str]) -> None:
    with pytest.raises(InputError, match=f"{key} is {value}: it must be at least .* and finite"):
        config(tiny, key, value)


def test_a_goal_that_is_never_looked_for_is_refused(tiny: list[str]) -> None:
    with pytest.raises(InputError, match=r"KNN\.GOAL is 50 and KNN\.EVERY 0 .*: set KNN\.EVERY"):
        config(tiny, "KNN.GOAL", 50, "KNN.TRAIN", "some/train")


@pytest.mark.parametrize("pair", [("KNN.EVERY", "0.5"), ("KNN.TEST", "some/test")])
def test_a_watch_without_labelled_pictures_is_refused(
    pair: tuple[str, str], tiny: list[str]
) -> None:
    with pytest.raises(InputError, match=rf"{pair[0]} is {pair[1]} and KNN\.TRAIN is empty: name"):
        config(tiny, *pair)


@pytest.mark.parametrize("pairs", [("MOCO.K", 10**13), ("AUGMENT.SIZE", 10**8)])
def test_a_run_that_no_memory_holds_is_one_line(
    pairs: tuple[str, int], tiny: list[str], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match="memory has run out .*moco-det plan|GiB are needed and cpu has"
    ):
        train.train(config(tiny, *pairs))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"bad\n", b"# text\n", b"\x80\x02", b"PK\x03\x04", b"\0" * 64]
)
def test_a_file_of_any_bytes_is_no_checkpoint_and_no_traceback(
    content: bytes, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pth").write_bytes(content)
    with pytest.raises(InputError, match="is no whole checkpoint .+"):
        checkpoints.read(tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match="none of the 1 checkpoints in .* is whole"):
        train.train(config(tiny, "OUTPUT_DIR", tmp_path), resume=True)


class FullDisk(io.BytesIO):
    """A file on a disk with room for 200 kB."""

    def write(self, part: Any) -> int:
        if self.tell() + len(part) > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(part)


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"step": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr(atomic, "open", lambda *_: FullDisk(), raising=False)
    content = {str(i): torch.zeros(20_000) for i in range(10)}
    with pytest.raises(InputError, match=r"cannot write .*checkpoint\.pth: No space left"):
        save_checkpoint(content, path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]
    assert path.read_bytes() == before
