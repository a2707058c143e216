from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from moco_det.foundation.errors import InputError
from pretrain import augment, data
from pretrain.data.order import DRAWN, Key, shuffled
from pretrain.data.views import Sample, cache_images

from .conftest import write_images


def view_set(images: data.ImageList, cache: list[np.ndarray | str] | None = None) -> data.ViewSet:
    spec = data.ViewSpec(augment.RECIPES["moco_v2"], size=32, views=2, seed=0)
    return data.ViewSet(images, spec, cache)


def count(total: int, share: float = 0.01, strict: bool = False) -> data.CorruptCount:
    return data.CorruptCount(total, share, strict)


def open_folder(folder: Path, *, images: int = 0, cache_mb: int = 0) -> data.Source:
    args = data.DataArgs(PATH=str(folder), CACHE_MB=cache_mb, IMAGES=images)
    spec = data.ViewSpec(augment.RECIPES["crop_flip"], size=32, views=2, seed=3)
    return data.open_data(args, spec, batch=1, device=torch.device("cpu"))


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    damaged = {"empty": b"", "text": b"<html>no image</html>", "cut": content[: len(content) // 2]}
    path.write_bytes(damaged[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
@pytest.mark.parametrize("cached", [True, False])
def test_one_broken_image_is_skipped_counted_and_named(
    kind: str, cached: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 5)
    damage(tmp_path / "002.jpg", kind)
    images = data.list_images(str(tmp_path))
    corrupt = count(5)
    if cached:
        cache = cache_images(images, budget_mb=10, shorter_side=0, corrupt=corrupt)
        assert cache is not None and len(cache) == 5
        assert isinstance(cache[2], str)
    else:
        _, used, _, bad = view_set(images)[(0, 2)]
        assert used == 3
        for path, reason in bad * 2:
            corrupt.add(path, reason)
    assert {Path(p).name for p in corrupt.names} == {"002.jpg"}
    assert caplog.text.count("002.jpg") == 1


def test_strict_stops_at_the_first_broken_image() -> None:
    with pytest.raises(InputError, match=r"a\.jpg.*DATA\.STRICT"):
        count(1000, strict=True).add("a.jpg", "empty file")


def test_too_many_broken_images_stop_the_run() -> None:
    corrupt = count(200, share=0.01)
    corrupt.add("a.jpg", "empty file")
    corrupt.add("b.jpg", "empty file")
    with pytest.raises(InputError, match=r"3 of 200 .*DATA\.MAX_CORRUPT 0\.01.*c\.jpg"):
        corrupt.add("c.jpg", "empty file")
    with pytest.raises(InputError, match="1 of 200"):
        count(200, share=0.0).add("a.jpg", "empty file")


def test_a_run_stops_early_where_far_too_many_of_the_images_seen_are_broken() -> None:
    corrupt = count(1_000_000)
    assert corrupt.limit == 10_000
    corrupt.saw(500)
    for i in range(19):  # 1 % of 1000 and three times the root of that
        corrupt.add(f"{i}.jpg", "empty file")
    with pytest.raises(InputError, match=r"20 of the first 500 images do not open"):
        corrupt.add("last.jpg", "empty file")
    corrupt.saw(99_500)
    assert corrupt.limit == 1094
    corrupt.saw(10_000_000)
    assert corrupt.limit == 10_000


def test_far_neighbours_replace_images_in_a_long_broken_stretch(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    paths = [str(tmp_path / "missing.jpg")] * 250 + [str(tmp_path / "000.jpg")] * 50
    views, used, _, bad = view_set(data.ImageList("", paths, None, []))[(0, 0)]
    assert used >= 250 and views.any() and 1 < len(bad) < 100


def test_where_no_image_opens_the_loader_stops_before_a_black_one_is_learnt(tmp_path: Path) -> None:
    images = data.ImageList("", [str(tmp_path / "gone.jpg")] * 4, None, [])
    loader = data.BatchLoader(
        view_set(images), data.Order(4, 2, seed=0, start=0, stop=1), workers=0, pin=False
    )
    with pytest.raises(InputError, match=r"gone\.jpg: No such file.*disk"):
        list(loader)


def test_a_set_without_one_whole_image_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    damage(tmp_path / "000.jpg", "empty")
    images = data.list_images(str(tmp_path))
    # Nothing to judge the size by: it is read later and counted there.
    assert cache_images(images, budget_mb=10, shorter_side=0, corrupt=count(1)) is None
    assert len(view_set(images)[(0, 0)][3]) == 1


def test_cached_and_uncached_samples_are_the_same_also_of_a_broken_image(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    damage(tmp_path / "003.jpg", "cut")
    images = data.list_images(str(tmp_path))
    cache = cache_images(images, budget_mb=10, shorter_side=0, corrupt=count(6))
    assert cache is not None
    for i in range(6):
        (read, *rest), (cached, *others) = view_set(images)[(2, i)], view_set(images, cache)[(2, i)]
        np.testing.assert_array_equal(read, cached)
        assert rest == others


def test_caching_stops_at_too_many_broken_images(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    for name in ("001.jpg", "004.jpg"):
        damage(tmp_path / name, "text")
    images = data.list_images(str(tmp_path))
    with pytest.raises(InputError, match=r"2 of the first 5 images.*004\.jpg"):
        cache_images(images, budget_mb=10, shorter_side=0, corrupt=count(6))


def test_a_set_that_does_not_fit_is_not_cached(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    # 24 images of 40 x 48 x 3 bytes are 0.13 MB.
    assert cache_images(images, budget_mb=0, shorter_side=0, corrupt=count(24)) is None


def test_an_epoch_shows_every_image_at_most_once_and_epochs_differ() -> None:
    batches = list(data.Order(10, 3, seed=0, start=0, stop=6))
    for epoch, part in enumerate([batches[:3], batches[3:]]):
        keys = [key for batch in part for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 9
    assert [i for b in batches[:3] for _, i in b] != [i for b in batches[3:] for _, i in b]


def test_order_can_be_entered_anywhere() -> None:
    whole = list(data.Order(10, 3, seed=5, start=0, stop=11))
    assert list(data.Order(10, 3, seed=5, start=4, stop=11)) == whole[4:]
    assert list(data.Order(10, 3, seed=6, start=0, stop=11)) != whole


def test_a_batch_larger_than_the_set_takes_several_passes() -> None:
    (batch,) = data.Order(3, 8, seed=0, start=0, stop=1)
    assert len(batch) == 8 and len(set(batch)) == 8
    assert np.bincount([i for _, i in batch]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize("images", [50, 5])
@pytest.mark.parametrize("world", [2, 4])
def test_the_rows_of_all_processes_are_the_global_batch(world: int, images: int) -> None:
    whole = list(data.Order(images, 8, seed=1, start=3, stop=13))
    shares = [
        list(data.Order(images, 8, seed=1, start=3, stop=13, rank=rank, world=world))
        for rank in range(world)
    ]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match=r"SOLVER\.BATCH 10 .*3 processes.*such as 9"):
        data.Order(50, 10, seed=0, start=0, stop=1, world=3)


@pytest.mark.parametrize("buffer", [1, 7, 100])
@pytest.mark.parametrize("first", [0, 20, DRAWN - 5])
def test_the_shuffle_is_a_sort_by_place_and_chance(buffer: int, first: int) -> None:
    def chance(i: int) -> float:
        seed = np.random.SeedSequence((1, 2, i // DRAWN))
        return float(np.random.Generator(np.random.PCG64(seed)).random(DRAWN)[i % DRAWN])

    items = list(range(first, first + 60))
    out = list(shuffled(iter(items), buffer=buffer, seed=(1, 2), first=first))
    assert out == sorted(items, key=lambda i: i + buffer * chance(i))
    assert max(abs(place - i) for place, i in enumerate(out, first)) < buffer
    assert (out == items) is (buffer == 1)


@pytest.mark.parametrize("buffer", [2, 3, 10])
def test_the_shuffle_is_entered_with_as_many_items_as_the_buffer_holds(buffer: int) -> None:
    for chance in range(300):  # far moves are rare
        whole = list(shuffled(range(40), buffer=buffer, seed=(chance,)))
        place = chance % 40
        first = max(0, place - buffer)
        entered = list(shuffled(range(first, 40), buffer=buffer, seed=(chance,), first=first))
        assert entered[place - first :] == whole[place:]


def test_the_shuffle_holds_no_more_than_its_buffer() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for i in range(2000):
            read.append(i)
            yield i

    waiting = [
        len(read) - given for given, _ in enumerate(shuffled(source(), buffer=64, seed=(0,)))
    ]
    assert max(waiting) <= 64 and 20 < np.mean(waiting) < 44


def batches(source: data.Source, *, start: int, workers: int) -> list[data.RawBatch]:
    return list(source.make_loader(batch=6, start=start, stop=9, workers=workers, pin=False))


def test_batches_do_not_depend_on_workers_and_go_on_anywhere(class_folders: Path) -> None:
    source = open_folder(class_folders)
    whole = batches(source, start=0, workers=0)
    assert len(whole) == 9 and whole[0].pixels.shape == (6, 2, 32, 32, 3)
    assert (source.images, source.numbered, source.classes) == (24, True, 2)
    for found, start in [(batches(source, start=0, workers=2), 0)] + [
        (batches(source, start=start, workers=1), start) for start in (1, 4, 7)
    ]:
        for one, other in zip(found, whole[start:], strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.indices, other.indices)
            assert torch.equal(one.labels, other.labels)


@pytest.mark.slow
def test_workers_that_are_spawned_make_the_same_batches(class_folders: Path) -> None:
    found = []
    for workers in (0, 1):
        order = data.Order(24, 6, seed=0, start=0, stop=2)
        views = view_set(data.list_images(str(class_folders)))
        loader = data.BatchLoader(views, order, workers=workers, pin=False)
        if workers:
            loader.multiprocessing_context = "spawn"
        found.append([batch.pixels.numpy() for batch in loader])
    np.testing.assert_array_equal(found[0], found[1])


def test_the_loader_leaves_torchs_random_numbers_alone(class_folders: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(open_folder(class_folders), start=7, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loader_counts_and_names_broken_images_and_stops(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    damage(tmp_path / "002.jpg", "empty")
    source = open_folder(tmp_path)
    for raw in source.make_loader(batch=4, start=0, stop=6, workers=0, pin=False):
        assert len(raw.indices) == 4 and 2 not in raw.indices
    assert [Path(name).name for name in source.corrupt.names] == ["002.jpg"]
    assert source.corrupt.seen == 24
    damage(tmp_path / "005.jpg", "text")
    with pytest.raises(InputError, match=r"2 of 8 images do not open.*005\.jpg"):
        list(source.make_loader(batch=4, start=0, stop=6, workers=1, pin=False))


def test_an_epochs_length_that_differs_from_the_images_listed_is_refused(
    class_folders: Path,
) -> None:
    assert open_folder(class_folders, images=24).identity == {"images": 24}
    with pytest.raises(InputError, match=r"DATA\.IMAGES is 25 .* has 24"):
        open_folder(class_folders, images=25)


def test_a_source_decodes_once_where_the_cache_is_large_enough(class_folders: Path) -> None:
    cached, read = open_folder(class_folders, cache_mb=1), open_folder(class_folders)
    assert isinstance(cached.dataset, data.ViewSet) and cached.dataset.cache is not None
    one, other = (batches(source, start=8, workers=0)[0] for source in (cached, read))
    assert torch.equal(one.pixels, other.pixels)


class _Killed(Dataset[Sample]):
    """Its worker process dies as one that the kernel kills for lack of memory."""

    def __getitem__(self, key: Key) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_is_one_clear_line() -> None:
    order = data.Order(4, 2, seed=0, start=0, stop=2)
    error = ""
    try:
        list(data.BatchLoader(_Killed(), order, workers=1, pin=False))
    except InputError as raised:
        error = str(raised)
    assert "process that reads images" in error and "DATA.WORKERS" in error and "\n" not in error


def test_other_errors_pass_through_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), data.worker_errors():
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(InputError, match="--shm-size"), data.worker_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is ...")


def test_the_only_image_may_not_be_the_broken_one() -> None:
    with pytest.raises(InputError, match="1 of 1 images do not open"):
        count(1).add("a.jpg", "empty file")
