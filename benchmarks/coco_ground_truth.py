"""A data set as COCO json content, the form in which pycocotools takes it."""

from __future__ import annotations

from typing import Any

from moco_det.data.records import DetectionDataset


def coco_ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """COCO instances content with the data set's own image and category ids.

    Annotation ids are 1..N in reading order (pycocotools takes id 0 for "no match"). Difficult
    objects carry "ignore": 1, which `moco_det.scoring` honours and plain pycocotools does not.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in dataset.records:
        images.append(
            {
                "id": record.image_id,
                "file_name": record.file_name,
                "height": record.height,
                "width": record.width,
            }
        )
        for a in record.annotations:
            x0, y0, x1, y1 = a.bbox
            row: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": record.image_id,
                "category_id": dataset.category_ids[a.category],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": a.area,
                "iscrowd": int(a.iscrowd),
                "ignore": int(a.difficult),
            }
            if a.segmentation is not None:
                row["segmentation"] = a.segmentation
            annotations.append(row)
    categories = [
        {"id": i, "name": name}
        for i, name in zip(dataset.category_ids, dataset.classes, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
