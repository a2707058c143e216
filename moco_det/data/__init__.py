"""Detection data sets on disk to plain records; no tensor library is needed to read them."""

from __future__ import annotations

from moco_det.data.catalog import load_dataset, load_datasets
from moco_det.data.catalog_names import coco_uri, voc_uri
from moco_det.data.check import check_images
from moco_det.data.image import image_size, read_image
from moco_det.data.image_files import image_files
from moco_det.data.read_coco import read_coco
from moco_det.data.read_voc import VOC_CLASSES, read_voc
from moco_det.data.records import Annotation, DetectionDataset, Record, concatenate

__all__ = [
    "VOC_CLASSES",
    "Annotation",
    "DetectionDataset",
    "Record",
    "check_images",
    "coco_uri",
    "concatenate",
    "image_files",
    "image_size",
    "load_dataset",
    "load_datasets",
    "read_coco",
    "read_image",
    "read_voc",
    "voc_uri",
]
