"""From a record to the network's input: sizes by hand, and everything that moves together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from moco_det.data import Annotation, Record
from moco_det.foundation.errors import InputError
from moco_det.standalone.mapper import Mapper, Sample, resized_shape

HEIGHT, WIDTH = 20, 30

TRAIN = Mapper(
    train=True,
    min_sizes=[40],
    max_size=100,
    sampling="choice",
    flip="none",
    image_format="RGB",
    with_masks=True,
    mask_format="polygon",
)
TEST = replace(TRAIN, train=False)


class Fixed:
    """A generator whose coin and die fall as told."""

    def __init__(self, coin: float = 0.0) -> None:
        self.coin = coin

    def uniform(self, low: float, high: float) -> float:
        return self.coin

    def choice(self, values: list[int]) -> int:
        return values[-1]

    def randint(self, low: int, high: int) -> int:
        return high - 1


def map_record(mapper: Mapper, record: Record, coin: float = 0.0) -> Sample:
    random: Any = Fixed(coin)
    return mapper(record, random)


def rle(rows: slice, columns: slice) -> dict[str, Any]:
    image = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    image[rows, columns] = 1
    encoded = coco_mask.encode(image)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def record_of(folder: Path, *annotations: Annotation, height: int = HEIGHT) -> Record:
    """A record whose image has 10 more in red, 20 in green, 30 in blue than its column's number."""
    columns = np.arange(WIDTH, dtype=np.uint8)[None, :, None]
    pixels = np.broadcast_to(columns + np.array([10, 20, 30], np.uint8), (HEIGHT, WIDTH, 3))
    file = folder / "image.png"
    Image.fromarray(np.ascontiguousarray(pixels)).save(file)
    return Record(7, str(file), height, WIDTH, annotations)


# a triangle in the box x 3..9, y 2..8
TRIANGLE = Annotation((3.0, 2.0, 9.0, 8.0), 4, segmentation=[[3.0, 2.0, 9.0, 2.0, 9.0, 8.0]])


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((375, 500), 800, 1333, (800, 1067)),
        ((100, 400), 800, 1333, (333, 1333)),  # 3200 is too long: 800 * 1333 / 3200 = 333.25
        ((5, 5), 64, 64, (64, 64)),
        ((600, 600), 600, 1000, (600, 600)),
        ((3, 1000), 10, 500, (2, 500)),  # 1.5 is rounded up
        ((1, 2000), 800, 500, (1, 500)),  # 0.25 would be rounded to nothing
    ],
)
def test_resized_shape_by_hand(
    size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]
) -> None:
    assert resized_shape(*size, short, longest) == expected


def test_boxes_and_polygons_are_scaled_with_the_image(tmp_path: Path) -> None:
    sample = map_record(TRAIN, record_of(tmp_path, TRIANGLE))
    assert sample.image.shape == (3, 40, 60) and sample.image.dtype.is_floating_point is False
    assert (sample.height, sample.width, sample.image_id) == (HEIGHT, WIDTH, 7)
    assert sample.targets is not None and sample.targets.masks is not None
    assert sample.targets.boxes.tolist() == [[6, 4, 18, 16]]
    assert sample.targets.classes.tolist() == [4]
    assert sample.targets.masks[0][0].tolist() == [6, 4, 18, 4, 18, 16]


def test_a_horizontal_flip_moves_pixels_boxes_and_polygons(tmp_path: Path) -> None:
    mapper = replace(TRAIN, flip="horizontal", min_sizes=[20])
    record = record_of(tmp_path, TRIANGLE)
    sample, unflipped = map_record(mapper, record, 0.49), map_record(mapper, record, 0.5)
    # x becomes 30 - x
    assert sample.image[0, 0].tolist() == [10 + 29 - i for i in range(30)]
    assert unflipped.image[0, 0].tolist() == [10 + i for i in range(30)]
    assert sample.targets is not None and sample.targets.masks is not None
    assert sample.targets.boxes.tolist() == [[21, 2, 27, 8]]
    assert sample.targets.masks[0][0].tolist() == [27, 2, 21, 2, 21, 8]


def test_a_vertical_flip_turns_upside_down(tmp_path: Path) -> None:
    mapper = replace(TRAIN, flip="vertical", min_sizes=[20])
    sample = map_record(mapper, record_of(tmp_path, TRIANGLE))
    assert sample.targets is not None and sample.targets.masks is not None
    assert sample.targets.boxes.tolist() == [[3, 12, 9, 18]]  # y becomes 20 - y
    assert sample.targets.masks[0][0].tolist() == [3, 18, 9, 18, 9, 12]


def test_colours_come_in_the_order_asked_for(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    assert map_record(TRAIN, record).image[:, 0, 0].tolist() == [10, 20, 30]
    bgr = replace(TRAIN, image_format="BGR")
    assert map_record(bgr, record).image[:, 0, 0].tolist() == [30, 20, 10]


def test_crowds_and_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    crowd = replace(TRIANGLE, iscrowd=True, segmentation=rle(slice(0, 5), slice(0, 5)))
    thin = replace(TRIANGLE, bbox=(3.0, 2.0, 3.0, 8.0))
    outside = replace(TRIANGLE, bbox=(31.0, 2.0, 40.0, 8.0))
    sample = map_record(TRAIN, record_of(tmp_path, crowd, thin, outside))
    assert sample.targets is not None and sample.targets.masks == []
    assert sample.targets.boxes.shape == (0, 4) and sample.targets.classes.shape == (0,)


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    over = replace(TRIANGLE, bbox=(-3.0, -2.0, 40.0, 25.0))
    sample = map_record(TRAIN, record_of(tmp_path, over))
    assert sample.targets is not None
    assert sample.targets.boxes.tolist() == [[0, 0, 60, 40]]


def test_an_image_without_objects_has_empty_targets(tmp_path: Path) -> None:
    sample = map_record(TRAIN, record_of(tmp_path))
    assert sample.targets is not None
    assert sample.targets.boxes.shape == (0, 4) and sample.targets.masks == []
    assert map_record(replace(TRAIN, with_masks=False), record_of(tmp_path)).targets is not None


def test_testing_resizes_and_knows_no_targets_and_no_chance(tmp_path: Path) -> None:
    sample = replace(TEST, flip="horizontal")(record_of(tmp_path, TRIANGLE))
    assert sample.image.shape == (3, 40, 60) and sample.targets is None
    row = sample.image[0, 0].tolist()
    assert row == sorted(row)  # not flipped


def test_sizes_are_chosen_from_the_list_or_the_range(tmp_path: Path) -> None:
    record = record_of(tmp_path)

    def heights(mapper: Mapper) -> set[int]:
        random = np.random.RandomState(0)
        return {mapper(record, random).image.shape[1] for _ in range(60)}

    assert heights(replace(TRAIN, min_sizes=[24, 40])) == {24, 40}
    assert heights(replace(TRAIN, min_sizes=[24, 27], sampling="range")) == {24, 25, 26, 27}


def test_the_same_generator_gives_the_same_sample(tmp_path: Path) -> None:
    mapper = replace(TRAIN, min_sizes=[20, 40], sampling="range", flip="horizontal")
    record = record_of(tmp_path, TRIANGLE)
    one, two = (mapper(record, np.random.RandomState([5, 3])) for _ in range(2))
    assert one.image.equal(two.image) and one.targets is not None and two.targets is not None
    assert one.targets.boxes.equal(two.targets.boxes)


def test_polygons_become_bitmaps_where_asked(tmp_path: Path) -> None:
    square = replace(TRIANGLE, segmentation=[[3.0, 2, 9, 2, 9, 8, 3, 8]])
    mapper = replace(TRAIN, mask_format="bitmask", flip="horizontal", min_sizes=[20])
    sample = map_record(mapper, record_of(tmp_path, square))
    expected = np.zeros((20, 30), dtype=bool)
    expected[2:8, 21:27] = True
    assert sample.targets is not None and sample.targets.masks is not None
    np.testing.assert_array_equal(sample.targets.masks[0], expected)


def test_run_lengths_are_resized_and_flipped_as_bitmaps(tmp_path: Path) -> None:
    coded = replace(TRIANGLE, segmentation=rle(slice(2, 8), slice(3, 9)))
    mapper = replace(TRAIN, mask_format="bitmask", flip="horizontal")
    sample = map_record(mapper, record_of(tmp_path, coded))
    expected = np.zeros((40, 60), dtype=bool)
    expected[4:16, 42:54] = True  # twice as large; x 6..18 becomes 60 - 18 .. 60 - 6
    assert sample.targets is not None and sample.targets.masks is not None
    np.testing.assert_array_equal(sample.targets.masks[0], expected)


def test_a_bitmap_that_vanishes_takes_its_object_with_it(tmp_path: Path) -> None:
    nothing = replace(TRIANGLE, segmentation=rle(slice(0, 0), slice(0, 0)))
    sample = map_record(replace(TRAIN, mask_format="bitmask"), record_of(tmp_path, nothing))
    assert sample.targets is not None and len(sample.targets.boxes) == 0


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_an_object_whose_mask_is_not_known_trains_no_mask(
    tmp_path: Path, mask_format: Literal["polygon", "bitmask"]
) -> None:
    record = record_of(tmp_path, replace(TRIANGLE, segmentation=[]), TRIANGLE)
    targets = map_record(replace(TRAIN, mask_format=mask_format), record).targets
    assert targets is not None and targets.masks is not None
    assert len(targets.boxes) == len(targets.masks) == 1


def test_boxes_are_learned_from_objects_without_masks(tmp_path: Path) -> None:
    record = record_of(tmp_path, replace(TRIANGLE, segmentation=None))
    targets = map_record(replace(TRAIN, with_masks=False), record).targets
    assert targets is not None and len(targets.boxes) == 1 and targets.masks is None


def test_an_image_of_another_size_than_annotated_is_bad_input(tmp_path: Path) -> None:
    record = record_of(tmp_path, TRIANGLE, height=21)
    with pytest.raises(InputError, match=r"image\.png is 30 x 20 pixels.* 30 x 21"):
        map_record(TRAIN, record)


def test_a_mirrored_image_one_pixel_wide_is_a_tensor(tmp_path: Path) -> None:
    Image.new("RGB", (1, 4), (9, 8, 7)).save(tmp_path / "thin.png")
    record = Record(1, str(tmp_path / "thin.png"), 4, 1)
    mapper = replace(TRAIN, min_sizes=[1], max_size=4, flip="horizontal", with_masks=False)
    # both sides of the coin
    shapes = {mapper(record, np.random.RandomState(seed)).image.shape for seed in range(8)}
    assert shapes == {(3, 4, 1)}
