from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain import augment, data
from pretrain.errors import InputError

from .conftest import write_images


def view_set(images: data.ImageList, cache: list[np.ndarray] | None = None) -> data.ViewSet:
    return data.ViewSet(
        images, recipe=augment.RECIPES["moco_v2"], size=32, views=2, seed=0, cache=cache
    )


def count(total: int, share: float = 0.01, strict: bool = False) -> data.CorruptCount:
    return data.CorruptCount(total, max_share=share, strict=strict)


def test_class_folders_give_labels_in_the_order_of_names(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    assert images.classes == ["cat", "dog"] and len(images) == 24
    assert images.labels is not None and images.labels.tolist() == [0] * 12 + [1] * 12


def test_a_folder_with_images_of_its_own_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    write_images(tmp_path / "more", 2)
    images = data.list_images(str(tmp_path))
    assert len(images) == 4 and images.labels is None


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert len(data.list_images(str(tmp_path))) == 2


def test_a_text_list_is_read_relative_to_itself_with_and_without_classes(
    class_folders: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "x", 3)
    plain = tmp_path / "plain.txt"
    plain.write_text("x/000.jpg\n\nx/001.jpg\n")
    assert [Path(p).name for p in data.list_images(str(plain)).paths] == ["000.jpg", "001.jpg"]
    labelled = tmp_path / "labelled.txt"
    labelled.write_text("x/000.jpg\tb\nx/001.jpg\ta\n")
    images = data.list_images(str(labelled))
    assert images.classes == ["a", "b"] and images.labels is not None
    assert images.labels.tolist() == [1, 0]
    labelled.write_text("x/000.jpg\tb\nx/001.jpg\n")
    with pytest.raises(InputError, match="every line"):
        data.list_images(str(labelled))


@pytest.mark.parametrize("kind", ["", "missing", "empty_folder", "empty_list"])
def test_nothing_to_read_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "empty_list").write_text("")
    with pytest.raises(InputError, match="DATA.PATH"):
        data.list_images(str(tmp_path / kind) if kind else "")


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    bgr = np.zeros((8, 8, 3), dtype=np.uint8)
    bgr[..., 2] = 200  # red in OpenCV's order
    cv2.imwrite(str(tmp_path / "red.png"), bgr)
    assert data.read_image(str(tmp_path / "red.png"))[0, 0].tolist() == [200, 0, 0]
    cv2.imwrite(str(tmp_path / "gray.png"), bgr[..., 2])
    assert data.read_image(str(tmp_path / "gray.png")).shape == (8, 8, 3)


def test_shorter_side_shrinks_and_never_enlarges(tmp_path: Path) -> None:
    write_images(tmp_path, 1, shape=(40, 60))
    path = str(tmp_path / "000.jpg")
    assert data.read_image(path, shorter_side=20).shape == (20, 30, 3)
    assert data.read_image(path, shorter_side=100).shape == (40, 60, 3)


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
        images, cache = data.cache_images(images, budget_mb=10, shorter_side=0, corrupt=corrupt)
        assert cache is not None and len(images) == len(cache) == 4
    else:
        _, used, _, bad = view_set(images)[(0, 2)]
        assert used == 3
        for path, reason in bad * 2:
            corrupt.add(path, reason)
    assert {Path(p).name for p in corrupt.names} == {"002.jpg"}
    assert caplog.text.count("002.jpg") == 1


def test_a_jpeg_with_trailing_bytes_is_whole(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    path = tmp_path / "000.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert data.read_image(str(path)).shape == (40, 48, 3)


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


def test_a_set_without_one_whole_image_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    damage(tmp_path / "000.jpg", "empty")
    images = data.list_images(str(tmp_path))
    _, cache = data.cache_images(images, budget_mb=10, shorter_side=0, corrupt=count(1))
    assert cache is None  # nothing to judge the size by: read later, counted there
    assert len(view_set(images)[(0, 0)][3]) == 1


def test_cached_and_uncached_views_are_the_same(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    same, cache = data.cache_images(images, budget_mb=10, shorter_side=0, corrupt=count(24))
    assert cache is not None and same.paths == images.paths
    np.testing.assert_array_equal(view_set(images)[(2, 5)][0], view_set(same, cache)[(2, 5)][0])


def test_a_set_that_does_not_fit_is_not_cached(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    # 24 images of 40 x 48 x 3 bytes are 0.13 MB.
    assert data.cache_images(images, budget_mb=0, shorter_side=0, corrupt=count(24))[1] is None


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


def test_batches_do_not_depend_on_the_number_of_workers(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    pixels = []
    for workers in (0, 2):
        order = data.Order(24, 6, seed=0, start=0, stop=5)
        loader = data.make_loader(view_set(images), order, workers=workers, pin=False)
        pixels.append([batch.pixels.numpy() for batch in loader])
    np.testing.assert_array_equal(pixels[0], pixels[1])


def test_the_only_image_may_not_be_the_broken_one() -> None:
    with pytest.raises(InputError, match="1 of 1 images do not open"):
        count(1).add("a.jpg", "empty file")
