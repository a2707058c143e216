"""Streams of WebDataset shards: in which order, shared, entered anywhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_det.foundation.errors import InputError
from pretrain import augment, data
from pretrain.data import shards
from pretrain.data.shard_files import list_shards, read_shard
from pretrain.data.shards import StreamOrder
from pretrain.images import read_image

from .conftest import write_images
from .shard_builders import Members, error_of, open_stream, picture, write_stream, write_tar


def order(
    path: str, images: int = 60, batch: int = 6, buffer: int = 16, **steps: int
) -> list[list[tuple[int, str]]]:
    """The keys of a stream's samples by batch, each with the epoch."""
    steps = {"seed": 5, "start": 0, "stop": 10, **steps}
    made = StreamOrder(images, batch, shards=list_shards(path), buffer=buffer, **steps)
    batches = list(made)
    assert len(batches) == len(made)
    return [[(one.epoch, one.sample.name.rpartition(":")[2]) for one in b] for b in batches]


def flat(batches: list[list[tuple[int, str]]]) -> list[tuple[int, str]]:
    return [key for batch in batches for key in batch]


def test_an_epoch_shows_every_sample_once_mixed_over_shards(tmp_path: Path) -> None:
    batches = order(write_stream(tmp_path, [10, 20, 5, 25]), stop=20)
    for epoch in (0, 1):
        keys = flat(batches[10 * epoch : 10 * (epoch + 1)])
        assert sorted(keys) == [(epoch, f"{i:04d}") for i in range(60)]
    one, other = ([key for _, key in flat(part)] for part in (batches[:10], batches[10:]))
    assert one != other and one != sorted(one)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("buffer", "streams"), [(1, 1), (16, 1), (1000, 1), (16, 2)])
def test_a_stream_can_be_entered_anywhere(
    buffer: int, streams: int, index: bool, tmp_path: Path
) -> None:
    path = write_stream(tmp_path, [10, 20, 5, 25], index=index)
    whole = order(path, stop=23, buffer=buffer, streams=streams)
    for start in (1, 2, 5, 9, 10, 11, 17, 22):
        assert order(path, start=start, stop=23, buffer=buffer, streams=streams) == whole[start:]


def numbers_of(path: str, *, world: int, **steps: int) -> list[list[tuple[int, int]]]:
    """The global batches of `world` processes, by epoch and number, which decide the views."""
    shards = list_shards(path)
    ranks = [
        StreamOrder(48, 12, shards=shards, buffer=8, seed=5, rank=rank, world=world, **steps)
        for rank in range(world)
    ]
    return [
        [(one.epoch, one.number) for share in shares for one in share]
        for shares in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("streams", [4, 1, 3])
def test_any_number_of_processes_goes_on_with_the_batches_of_those_that_began(
    streams: int, index: bool, tmp_path: Path
) -> None:
    path = write_stream(tmp_path, [10, 3, 8, 4, 6, 9], index=index)  # 48 images need two laps
    whole = numbers_of(path, world=streams, start=0, stop=13)
    parts: list[list[tuple[int, int]]] = []
    for world, stop in ((4, 3), (2, 6), (1, 7), (6, 9), (12, 10), (4, 13)):  # 4 steps are an epoch
        parts += numbers_of(path, world=world, start=len(parts), stop=stop, streams=streams)
    assert parts == whole and len({key for batch in whole for key in batch}) == 13 * 12


def test_a_process_opens_no_shards_but_those_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = write_stream(tmp_path, [6] * 8, index=True), list[str]()

    def reading(url: str) -> Iterator[shards.Encoded]:
        opened.append(url)
        return read_shard(url)

    monkeypatch.setattr(shards, "read_shard", reading)
    for rank in (0, 1):  # four streams of two shards each
        order(path, images=48, batch=12, stop=4, rank=rank, world=2, streams=4)
        assert len(opened) == len(set(opened)) == 4 * (rank + 1)


def test_processes_share_the_samples_without_overlap(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [10, 10, 10, 10, 10, 10])
    shares = [order(path, batch=6, stop=10, rank=rank, world=3) for rank in range(3)]
    assert all(len(batch) == 2 for share in shares for batch in share)
    assert sorted(key for share in shares for _, key in flat(share)) == [
        f"{i:04d}" for i in range(60)
    ]


def test_an_epoch_longer_than_the_shards_starts_over_in_a_new_order(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [1, 2, 1, 2, 1, 2, 1])
    keys = [key for _, key in flat(order(path, images=24, batch=4, stop=6, buffer=1))]
    assert Counter(keys[:10]) == Counter(keys[10:20]) == Counter(f"{i:04d}" for i in range(10))
    assert keys[:10] != keys[10:20]
    assert (
        order(path, images=24, batch=4, start=4, stop=6, buffer=1)
        == order(path, images=24, batch=4, stop=6, buffer=1)[4:]
    )


def test_too_few_shards_for_the_processes_are_refused(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [10, 10])
    with pytest.raises(InputError, match="2 shards for 3 processes"):
        order(path, rank=0, world=3)
    with pytest.raises(InputError, match="2 shards for 3 processes"):
        order(path, rank=0, world=1, streams=3)
    with pytest.raises(InputError, match=r"SOLVER\.BATCH 5 "):
        order(path, batch=5, world=2)


def batches(
    source: data.Source, *, start: int = 0, stop: int = 4, workers: int = 0
) -> list[data.RawBatch]:
    return list(source.make_loader(batch=6, start=start, stop=stop, workers=workers, pin=False))


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 0), (2, 5)])
def test_views_do_not_depend_on_workers_nor_on_where_the_stream_is_entered(
    workers: int, start: int, tmp_path: Path
) -> None:
    path = write_stream(tmp_path, [10, 8, 6], index=True)
    whole = batches(open_stream(path), stop=8)
    found = batches(open_stream(path), start=start, stop=8, workers=workers)
    for one, other in zip(found, whole[start:], strict=True):
        assert one.pixels.shape == (6, 2, 32, 32, 3)
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)


def test_views_are_those_of_the_samples_number(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 6)
    files = sorted((tmp_path / "photos").iterdir())
    write_tar(tmp_path / "x.tar", [(file.name, file.read_bytes()) for file in files])
    source = open_stream(str(tmp_path / "x.tar"), images=6)
    for epoch, raw in enumerate(batches(source, stop=2)):
        for pixels, number in zip(raw.pixels, raw.indices, strict=True):
            expected = augment.views(
                read_image(str(files[number])),  # of one shard the stored order is known
                augment.RECIPES["moco_v2"],
                size=32,
                count=2,
                rng=augment.generator(5, epoch, int(number)),
            )
            np.testing.assert_array_equal(pixels.numpy(), expected)


def test_numbers_are_unlike_within_an_epoch_and_over_processes(tmp_path: Path) -> None:
    source = open_stream(write_stream(tmp_path, [6, 6, 6, 6]), images=24)
    load = partial(source.make_loader, batch=6, world=2, workers=0, pin=False)
    for epoch in (0, 1):
        loaders = [load(start=4 * epoch, stop=4 * epoch + 4, rank=rank) for rank in (0, 1)]
        numbers = [int(i) for loader in loaders for raw in loader for i in raw.indices]
        assert sorted(numbers) == list(range(24))


def test_pixels_and_label_are_of_the_same_sample(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [6, 6], index=True)
    seen = []
    for raw in batches(open_stream(path, recipe="crop_flip", views=1), stop=2):
        for pixels, label in zip(raw.pixels, raw.labels, strict=True):
            (value,) = pixels.unique().tolist()  # the crop of a flat image is flat
            assert value % 3 == label
            seen.append(value)
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("bad.png", picture(0)[:40]), ("bad.cls", b"1")], "not an image"),
        ([("bad.png", b""), ("bad.cls", b"1")], "empty file"),
        ([("bad.txt", b"hello"), ("bad.cls", b"1")], "the sample has no image"),
        ([("bad.png", picture(0)), ("bad.cls", b"3")], "its .cls is not a number from 0 to 2"),
        ([("bad.png", picture(0)), ("bad.cls", b"dog")], "its .cls is not a number"),
        ([("bad.png", picture(0))], "its .cls is not a number"),
    ],
    ids=["cut", "empty", "no_image", "class_too_high", "class_by_name", "no_class"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_is_replaced_counted_and_named(
    workers: int, members: Members, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_stream(tmp_path, [6, 6], index=True)
    good = [
        (f"{i}.{kind}", content)
        for i in range(5)
        for kind, content in (("png", picture(i)), ("cls", b"0"))
    ]
    write_tar(tmp_path / "x-01.tar", [*good[:4], *members, *good[4:]])
    source = open_stream(path)
    for raw in batches(source, workers=workers):
        assert raw.pixels.shape[0] == len(raw.indices) == 6 and raw.labels.min() >= 0
    assert source.corrupt.names == {f"{tmp_path / 'x-01.tar'}:bad"}
    assert caplog.text.count("skipped image") == 1
    assert f"x-01.tar:bad: {reason}" in caplog.text
    strict = open_stream(path, max_corrupt=0.0)
    loader = strict.make_loader(batch=6, start=0, stop=4, workers=workers, pin=False)
    assert re.search(r"DATA\.MAX_CORRUPT 0 .*x-01\.tar:bad", error_of(loader))


def test_a_batch_of_nothing_but_corrupt_samples_stops_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{i}.png", b"") for i in range(6)])
    with pytest.raises(InputError, match="do not open|does not open"):
        batches(open_stream(str(tmp_path / "x.tar"), images=6, max_corrupt=1.0))


def test_a_command_in_the_place_of_shards_is_run_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOCO_DET_PIPES", raising=False)
    with pytest.raises(InputError, match="is a command, .* MOCO_DET_PIPES=1"):
        order(f"pipe:touch {tmp_path}/canary")
    assert not (tmp_path / "canary").exists()


def test_an_address_is_streamed_and_entered_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOCO_DET_PIPES", "1")
    write_stream(tmp_path, [10, 20])
    path = f"pipe:cat {tmp_path}/x-{{00..01}}.tar"
    whole = order(path, images=30, stop=7)
    assert sorted(flat(whole[:5])) == [(0, f"{i:04d}") for i in range(30)]
    assert (
        order(path, images=30, start=4, stop=7, buffer=2)
        == order(path, images=30, stop=7, buffer=2)[4:]
    )
    with pytest.raises(InputError, match=r"shard pipe:cat .*gone\.tar"):
        order(f"pipe:cat {tmp_path}/gone.tar")
