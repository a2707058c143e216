"""The COCO reader: conventions and every kind of bad input."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest

from benchmarks.coco_ground_truth import coco_ground_truth
from moco_det.data import read_coco
from moco_det.data.masks import compressed
from moco_det.foundation.errors import InputError
from tests.data.builders import coco_content, write_coco


def test_images_and_classes_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    dataset = read_coco(*write_coco(tmp_path, coco_content()))
    assert [r.image_id for r in dataset.records] == [4, 9, 12]
    assert dataset.classes == ("cat", "dog") and dataset.category_ids == (3, 7)
    dog, crowd = dataset.records[0].annotations[0], dataset.records[1].annotations[0]
    assert dog.bbox == (2.0, 3.0, 12.0, 8.0) and dog.category == 1 and dog.id == 100
    assert crowd.iscrowd and crowd.category == 0
    assert dataset.records[2].annotations == ()
    assert dataset.has_masks and dataset.layout == "coco" and dataset.skipped == ()


def test_uncompressed_rle_is_compressed_without_change(tmp_path: Path) -> None:
    dataset = read_coco(*write_coco(tmp_path, coco_content()))
    rle = dataset.records[1].annotations[0].segmentation
    assert isinstance(rle, dict) and isinstance(rle["counts"], str)
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 0] = 1
    assert np.array_equal(pycocotools.mask.decode(rle), expected)


def test_what_cannot_be_used_is_dropped_and_counted(tmp_path: Path) -> None:
    content = coco_content()
    base = content["annotations"][0]
    content["annotations"] += [
        {**base, "id": 1, "bbox": [5, 5, 0, 3]},
        {**base, "id": 2, "bbox": [25, 5, 10, 3]},
        {**base, "id": 3, "bbox": [9, 5, -4, 3]},
        {**base, "id": 4, "image_id": 777},
        {**base, "id": 5, "image_id": "4"},
    ]
    dataset = read_coco(*write_coco(tmp_path, content))
    assert [a.id for a in dataset.records[0].annotations] == [100, 2]
    assert dataset.records[0].annotations[1].bbox == (25.0, 5.0, 30.0, 8.0)
    assert dataset.skipped == (
        "1 boxes of zero area dropped (first: annotation id 1)",
        "1 boxes clipped to their image (first: annotation id 2)",
        "1 boxes with xmax below xmin or ymax below ymin dropped (first: annotation id 3)",
        "1 annotations of images that are not listed dropped (first: id 4, image_id 777)",
        "1 annotations dropped, for image_id and id of their image are text and number "
        "(first: id 5, image_id '4')",
    )


def test_where_nothing_can_be_used_the_counted_reasons_are_told(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    with pytest.raises(InputError, match=r"no usable object: 2 annotations dropped, for image_id"):
        read_coco(*write_coco(tmp_path, content))


@pytest.mark.parametrize("nothing", [[[]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3]]])
def test_an_object_whose_polygon_is_none_keeps_its_box(tmp_path: Path, nothing: list) -> None:
    content = coco_content()
    content["annotations"].append(
        {**content["annotations"][0], "id": 3, "area": None, "segmentation": nothing}
    )
    dataset = read_coco(*write_coco(tmp_path, content))
    mask, box = dataset.records[0].annotations
    assert box.bbox == mask.bbox and box.segmentation == [] and box.area == 50.0
    assert dataset.has_masks and dataset.skipped == (
        "1 objects without a polygon of three points serve their box alone "
        "(first: annotation id 3)",
    )
    content["annotations"] = content["annotations"][2:]
    assert not read_coco(*write_coco(tmp_path, content)).has_masks


@pytest.mark.parametrize("area", [math.nan, -50, math.inf, -math.inf, 1e300])
def test_an_area_that_is_no_number_of_pixels_is_measured_and_counted(
    tmp_path: Path, area: float
) -> None:
    content = coco_content()
    del content["annotations"][0]["area"]
    by_mask = read_coco(*write_coco(tmp_path, content)).records[0].annotations[0].area
    content["annotations"][0]["area"] = area
    dataset = read_coco(*write_coco(tmp_path, content))
    assert dataset.records[0].annotations[0].area == by_mask
    assert dataset.skipped == (
        "1 areas outside 0..1e+10 measured anew by mask or box (first: annotation id 100)",
    )


@pytest.mark.parametrize("far", [1e7, -1e7, 1e18, -1.7e308])
def test_a_polygon_far_outside_its_image_is_cut_to_it(tmp_path: Path, far: float) -> None:
    content = coco_content()
    outline = [2, 3, far, 3, far, 8, 2, 8] if far > 0 else [12, 3, 12, 8, far, 8, far, 3]
    content["annotations"][0] |= {"segmentation": [outline], "area": None}
    dataset = read_coco(*write_coco(tmp_path, content))
    found = dataset.records[0].annotations[0]
    expected = np.zeros((20, 30), bool)
    expected[3:8, slice(2, 30) if far > 0 else slice(0, 12)] = True
    drawn = pycocotools.mask.decode(compressed(found.segmentation, 20, 30)).astype(bool)
    assert np.array_equal(drawn, expected) and found.area == expected.sum()
    assert "1 masks with a polygon far outside their image clipped to it" in dataset.skipped[0]


def test_a_slanted_edge_of_a_polygon_far_outside_keeps_its_slope(tmp_path: Path) -> None:
    # the line from (0, 20) up to the right: half of the image's 20 x 20 left part lies below it
    content = coco_content()
    content["annotations"][0] |= {"segmentation": [[0, 20, 4000, -3980, 4000, 20]], "area": None}
    found = read_coco(*write_coco(tmp_path, content)).records[0].annotations[0]
    assert found.area == pytest.approx(400 - 200 + 10 * 20, abs=20)
    # one that overhangs its image a little stays as it is
    content["annotations"][0] |= {"segmentation": [[-30, 20, 60, 20, 60, -30]]}
    found = read_coco(*write_coco(tmp_path, content)).records[0].annotations[0]
    assert found.segmentation == [[-30, 20, 60, 20, 60, -30]]


def test_boxes_in_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.8]
    with pytest.raises(InputError, match=r"every box lies within 0\.\.1.* multiply them"):
        read_coco(*write_coco(tmp_path, content))
    content["annotations"] = [{**content["annotations"][0], "bbox": [0, 0, 1, 1]}]
    assert read_coco(*write_coco(tmp_path, content)).objects == 1  # one pixel, and whole numbers


def test_an_image_under_two_ids_is_told(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].append({**content["images"][1], "id": "again", "file_name": "./a.jpg"})
    dataset = read_coco(*write_coco(tmp_path, content))
    assert len(dataset) == 4 and dataset.skipped == (
        "1 images under a second id, each id with objects of its own "
        "(first: ./a.jpg, ids 4 and 'again')",
    )


def test_folders_that_only_the_json_has_are_told(tmp_path: Path) -> None:
    content = coco_content()
    path, images = write_coco(tmp_path, content)
    for image in content["images"]:
        image["file_name"] = f"C:\\photos\\{image['file_name']}"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"a.jpg lies in .* itself: take the folders out"):
        read_coco(path, images)


def test_a_set_with_some_masks_serves_boxes_and_says_so(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"].append({**content["annotations"][0], "id": 5, "segmentation": []})
    dataset = read_coco(*write_coco(tmp_path, content))
    assert not dataset.has_masks
    assert dataset.skipped == ("only 1 of 2 objects have a mask: the set serves boxes only",)


def test_area_is_measured_where_the_json_has_none(tmp_path: Path) -> None:
    content = coco_content()
    triangle = {**content["annotations"][0], "segmentation": [[2, 3, 12, 3, 12, 13, 2, 3]]}
    del triangle["area"]
    boxed = {k: v for k, v in triangle.items() if k != "segmentation"}
    content["annotations"] = [triangle, {**boxed, "id": 6}]
    by_mask, by_box = read_coco(*write_coco(tmp_path, content)).records[0].annotations
    assert by_mask.area == pytest.approx(50, abs=6)
    assert by_box.area == 50.0


def test_a_size_that_no_image_has_is_read_from_the_image(tmp_path: Path) -> None:
    content = coco_content()
    path, images = write_coco(tmp_path, content)
    for image, size in zip(content["images"], (10**9, None, 10**400), strict=True):
        image["height"] = image["width"] = size
    path.write_text(json.dumps(content))
    assert {(r.height, r.width) for r in read_coco(path, images).records} == {(20, 30)}
    for image, sides in zip(content["images"], ((1, 2**28), (-3, 5), (1.5, "x")), strict=True):
        image["height"], image["width"] = sides
    path.write_text(json.dumps(content))
    assert {(r.height, r.width) for r in read_coco(path, images).records} == {(20, 30)}


def test_ignore_reads_as_difficult_and_is_written_back(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["ignore"] = 1
    dataset = read_coco(*write_coco(tmp_path, content))
    assert dataset.records[0].annotations[0].difficult
    assert [row["ignore"] for row in coco_ground_truth(dataset)["annotations"]] == [1, 0]


def test_given_classes_keep_their_order_and_get_an_id_where_the_json_has_none(
    tmp_path: Path,
) -> None:
    dataset = read_coco(*write_coco(tmp_path, coco_content()), classes=["dog", "emu", "cat"])
    assert dataset.category_ids == (7, 8, 3)
    assert dataset.records[0].annotations[0].category == 0


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class 'cat' of annotation 101 .* not among .* dog"):
        read_coco(*write_coco(tmp_path, coco_content()), classes=["dog"])


def test_ground_truth_gives_the_annotations_back(tmp_path: Path) -> None:
    content = coco_content()
    truth = coco_ground_truth(read_coco(*write_coco(tmp_path, content)))
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert [image["id"] for image in truth["images"]] == [4, 9, 12]
    dog = truth["annotations"][0]
    for key in ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"):
        assert dog[key] == content["annotations"][0][key]
    assert [row["id"] for row in truth["annotations"]] == [1, 2]


def _spoilt(key: str, change) -> dict:
    content = copy.deepcopy(coco_content())
    change(content[key])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list 'images'"),
        ({**coco_content(), "categories": None}, "no list 'categories'"),
        ({k: v for k, v in coco_content().items() if k != "categories"}, "no list 'categories'"),
        ({k: v for k, v in coco_content().items() if k != "images"}, "no list 'images'"),
        ({k: v for k, v in coco_content().items() if k != "annotations"}, "'annotations'"),
        ({**coco_content(), "images": []}, "lists no images"),
        ({**coco_content(), "categories": []}, "lists no categories"),
        ({**coco_content(), "annotations": []}, "no usable object"),
        ({**coco_content(), "images": [3]}, "no list 'images' of objects"),
        (_spoilt("annotations", lambda a: a[0].update(category_id=5)), "category_id 5"),
        (_spoilt("annotations", lambda a: a[0].pop("category_id")), "no usable 'category_id'"),
        (_spoilt("annotations", lambda a: a[0].update(bbox=[1, 2, 3])), "bbox"),
        (_spoilt("annotations", lambda a: a[0].update(bbox=None)), "bbox None"),
        (_spoilt("annotations", lambda a: a[1].update(segmentation={"size": [2, 2]})), "RLE"),
        (_spoilt("annotations", lambda a: a[0].update(segmentation=[["x"] * 6])), "segmentation"),
        (
            _spoilt("annotations", lambda a: a[1].update(id=100)),
            "id 100 is listed twice",
        ),
        (_spoilt("annotations", lambda a: a[0].update(iscrowd="yes")), "iscrowd 'yes' is neither"),
        (
            _spoilt("annotations", lambda a: a[1]["segmentation"].update(counts="xx")),
            "RLE counts that are no mask",
        ),
        (
            _spoilt("annotations", lambda a: a[0].update(segmentation=[[1, 2, math.nan, 4, 5, 6]])),
            "a polygon with a coordinate that is no number",
        ),
        (_spoilt("images", lambda i: i[0].update(file_name="z.jpg")), "z.jpg does not exist"),
        (_spoilt("images", lambda i: i[0].pop("file_name")), "no usable 'file_name'"),
        (_spoilt("images", lambda i: i[1].update(id=9)), "image id 9 is listed twice"),
        (_spoilt("categories", lambda c: c[0].update(name="cat")), "'cat' .*listed twice"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, content, message: str) -> None:
    path, images = write_coco(tmp_path, coco_content())
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_coco(path, images)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_and_missing_places_are_refused(tmp_path: Path) -> None:
    path, images = write_coco(tmp_path, coco_content())
    with pytest.raises(InputError, match="image folder .*none does not exist"):
        read_coco(path, tmp_path / "none")
    with pytest.raises(InputError, match="none.json does not exist"):
        read_coco(tmp_path / "none.json", images)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="is not json"):
        read_coco(path, images)
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_coco(path, images)


HUGE = 10**400
ZIGZAG = [value for i in range(200_000) for value in (30.0 * (i % 2), 20.0 * (i % 3 > 0))]


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [HUGE, 0, 1, 1]},
        {"area": HUGE},
        {"iscrowd": HUGE},
        {"segmentation": [[HUGE, 0, 1, 1, 2, 2]]},
        {"segmentation": [ZIGZAG]},  # pycocotools would draw five points per pixel of it
        {"segmentation": [[0, 0, 30, 0, 30, 20] * 900], "bbox": [0, 0, 0.01, 0.01]},
        {"segmentation": {"size": [math.inf, 30], "counts": "0"}},
        {"segmentation": {"size": [20, 30], "counts": [HUGE, -HUGE]}},
        {"category_id": HUGE},
        {"image_id": HUGE},
        {"id": HUGE},
    ],
)
def test_numbers_that_no_annotation_has_are_refused_at_reading(
    tmp_path: Path, changes: dict
) -> None:
    content = coco_content()
    content["annotations"][0].update(changes)
    with pytest.raises(InputError, match="not COCO's|no usable") as caught:
        read_coco(*write_coco(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["\ud800", "x" * 300, "\ud83d"])
def test_class_names_that_no_file_can_hold_are_refused(tmp_path: Path, name: str) -> None:
    content = coco_content()
    content["categories"][0]["name"] = name
    with pytest.raises(InputError, match="no usable 'name'"):
        read_coco(*write_coco(tmp_path, content))


def test_the_coco_sample_reads_whole(data_root: Path) -> None:
    root = data_root / "coco2017_sample"
    crowds = 0
    for split, images, objects in (("train", 88, 821), ("val", 64, 552)):
        path = root / "annotations" / f"instances_{split}2017.json"
        dataset = read_coco(path, root / f"{split}2017")
        assert (len(dataset), dataset.objects) == (images, objects)
        assert len(dataset.classes) == 80 and dataset.category_ids[-1] == 90
        assert dataset.has_masks and dataset.skipped == ()
        crowds += sum(a.iscrowd for r in dataset.records for a in r.annotations)
    assert crowds == 17
