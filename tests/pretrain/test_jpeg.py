"""JPEGs that are damaged inside: told from whole ones, named, and used as they decode."""

from __future__ import annotations

import io
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_det.data.scene_painter import paint_close_up
from moco_det.data.scene_shapes import CLASSES
from moco_det.data.scenes import scene_rng
from pretrain import augment, data
from pretrain.data.resident import decode_squares
from pretrain.images import read_image
from pretrain.jpeg import is_damaged
from pretrain.probe.features import centre_views

from .shard_builders import open_stream, write_tar

DAMAGE = {
    "zeros": lambda jpeg, at: jpeg[:at] + bytes(2048) + jpeg[at + 2048 :],
    "noise": lambda jpeg, at: jpeg[:at] + random.Random(0).randbytes(2048) + jpeg[at + 2048 :],
    "bytes missing": lambda jpeg, at: jpeg[:at] + jpeg[at + 1000 :],
    "bytes twice": lambda jpeg, at: jpeg[:at] + jpeg[at - 1000 :],
}


def picture(side: int = 200, seed: int = 0) -> Image.Image:
    pixels = paint_close_up(scene_rng(seed, "unlabelled", 1), side, list(CLASSES))
    return Image.fromarray(pixels)


def jpeg_of(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_inside_is_found(kind: str, mode: str) -> None:
    jpeg = jpeg_of(picture().convert(mode))
    damaged = DAMAGE[kind](jpeg, len(jpeg) // 2)
    assert is_damaged(damaged) and not is_damaged(jpeg)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 2, "quality": 5},
        {"optimize": True},
        {"restart_marker_blocks": 3},
        {"progressive": True},
        {"exif": Image.Exif()},
    ],
)
def test_a_whole_jpeg_of_any_kind_is_whole(options: dict[str, object]) -> None:
    flat = Image.new("RGB", (129, 77), (255, 255, 255))
    squares = np.kron(np.indices((20, 20)).sum(axis=0) % 2, np.ones((8, 8)))
    board = Image.fromarray((255 * squares).astype(np.uint8))
    for image in (
        picture(),
        picture(33),
        flat,
        flat.crop((0, 0, 1, 1)),
        flat.crop((0, 0, 3, 90)),
        board,
    ):
        jpeg = jpeg_of(image, **options)
        assert not is_damaged(jpeg) and not is_damaged(jpeg + b"more \xff\xd8 bytes\xff\xd9")


def test_the_photos_of_the_samples_are_whole(data_root: Path) -> None:
    photos = [
        *data_root.glob("coco2017_sample/*2017/*.jpg"),
        *data_root.glob("voc*/JPEGImages/*.jpg"),
    ]
    assert len(photos) > 600 and not any(is_damaged(photo.read_bytes()) for photo in photos)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos, the third of them damaged."""
    for number in range(4):
        jpeg = jpeg_of(picture(seed=number))
        if number == 2:
            jpeg = DAMAGE["zeros"](jpeg, len(jpeg) // 2)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg)
    return tmp_path


@pytest.mark.parametrize(
    "how", ["streamed", "workers", "cached", "on the device", "shards", "probe"]
)
def test_a_damaged_jpeg_is_named_once_and_used(
    how: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    name = str(folder / "2.jpg")
    spec = data.ViewSpec(augment.RECIPES["moco_v2"], size=32, views=2, seed=0)
    images, corrupt = data.list_images(str(folder)), data.CorruptCount(4, strict=True)
    if how == "probe":
        list(centre_views(images, size=32, batch=2))
    elif how == "on the device":
        squares = decode_squares(images, side=32, device=torch.device("cpu"), corrupt=corrupt)
        assert squares.used.tolist() == [0, 1, 2, 3]
    else:
        source = data.listed_source(images, spec, corrupt, cache_mb=64 * (how == "cached"))
        if how == "shards":
            members = [(file.name, file.read_bytes()) for file in sorted(folder.glob("*.jpg"))]
            write_tar(folder / "x-00.tar", members)
            source, name = open_stream(str(folder / "x-00.tar"), images=4), "x-00.tar:2"
        workers = 2 * (how == "workers")
        batches = source.make_loader(batch=4, start=0, stop=3, workers=workers, pin=False)
        for batch in batches:
            assert how == "shards" or sorted(batch.indices.tolist()) == [0, 1, 2, 3]
        assert not source.corrupt.names
    (line,) = caplog.messages
    assert name in line and "damaged inside; it is used as it decodes" in line
    assert read_image(str(folder / "2.jpg")).shape == (200, 200, 3)
