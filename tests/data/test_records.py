"""The fingerprint of a data set."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from moco_det.data import read_coco, records
from moco_det.foundation.errors import InputError
from tests.data.builders import coco_content, write_coco, write_image


def test_the_fingerprint_does_not_depend_on_where_the_files_are(tmp_path: Path) -> None:
    path, images = write_coco(tmp_path / "one", coco_content())
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = read_coco(path, images)
    two = read_coco(tmp_path / "two" / "instances.json", tmp_path / "two" / "images")
    assert one.fingerprint == two.fingerprint and len(one.fingerprint) == 64


@pytest.mark.parametrize("limit", [0, 2000])
def test_the_fingerprint_sees_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(records, "FINGERPRINT_BYTES_LIMIT", limit)

    def change(edit) -> str:
        content = coco_content()
        edit(content)
        return read_coco(*write_coco(tmp_path / "set", content)).fingerprint

    seen = [
        change(lambda c: None),
        change(lambda c: c["categories"][0].update(name="wolf")),
        change(lambda c: c["images"][2].update(id=13)),
        change(lambda c: c["annotations"][0].update(bbox=[2, 3, 10, 6])),
        change(lambda c: c["annotations"][0].update(category_id=3)),
        change(lambda c: c["annotations"][0].update(iscrowd=1)),
        change(lambda c: c["annotations"][0].update(ignore=1)),
        change(lambda c: c["annotations"][0].update(area=51)),
        change(lambda c: c["annotations"][0]["segmentation"][0].append(1.0) or None),
        change(lambda c: c["annotations"][1]["segmentation"].update(counts=[0, 21, 579])),
    ]
    # an odd polygon is dropped with its object, which changes the fingerprint as well
    assert len(set(seen)) == len(seen)


def test_the_fingerprint_sees_the_pixels(tmp_path: Path) -> None:
    dataset = read_coco(*write_coco(tmp_path, coco_content()))
    before = dataset.fingerprint
    write_image(Path(dataset.records[0].file_name), seed=5)
    assert replace(dataset).fingerprint != before
    Path(dataset.records[0].file_name).unlink()
    with pytest.raises(InputError, match=r"cannot read image .*a\.jpg"):
        _ = replace(dataset).fingerprint
