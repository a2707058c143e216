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
        {**base, "id": 3, "segmentation": [[1, 1, 2, 2]]},
        {**base, "id": 4, "image_id": 777},
    ]
    dataset = read_coco(*write_coco(tmp_path, content))
    assert [a.id for a in dataset.records[0].annotations] == [100, 2]
    assert dataset.records[0].annotations[1].bbox == (25.0, 5.0, 30.0, 8.0)
    assert dataset.skipped == (
        "1 boxes of zero area dropped (first: annotation id 1)",
        "1 boxes clipped to their image (first: annotation id 2)",
        "1 objects without a polygon of three points dropped (first: annotation id 3)",
        "1 annotations of images that are not listed dropped (first: id 4)",
    )


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
