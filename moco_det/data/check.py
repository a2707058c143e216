"""Opening every image of a data set once, before hours of training depend on it."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tqdm import tqdm

from moco_det.data.image import image_fault
from moco_det.data.records import DetectionDataset, Record
from moco_det.foundation.errors import InputError

logger = logging.getLogger(__name__)

# More broken images than this share are a broken data set, not an accident.
TOLERATED_SHARE = 0.1


def check_images(
    dataset: DetectionDataset, strict: bool = False, progress: bool = True
) -> DetectionDataset:
    """The data set without the images that do not decode or differ in size from their annotation.

    They are counted in `skipped` and in one warning, the first by name. Raises InputError on the
    first under `strict`, and always when more than 10 % are broken.
    """

    def fault(record: Record) -> str | None:
        return image_fault(record.file_name, record.height, record.width)

    bar = tqdm(
        total=len(dataset),
        desc=f"checking images of {dataset.name}",
        unit="img",
        mininterval=1,
        disable=not progress,
    )
    kept, faults = [], []
    # decoding holds no interpreter lock; two threads per core keep the disk busy too
    with ThreadPoolExecutor(max_workers=min(2 * (os.cpu_count() or 1), 16)) as pool, bar:
        for record, reason in zip(dataset.records, pool.map(fault, dataset.records), strict=True):
            bar.update()
            if reason is None:
                kept.append(record)
                continue
            faults.append(reason)
            if strict:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InputError(f"{reason} (strict)")
    if not faults:
        return dataset
    message = f"{len(faults)} of {len(dataset)} images skipped, first: {faults[0]}"
    if len(faults) > TOLERATED_SHARE * len(dataset):
        raise InputError(f"data set {dataset.name}: {message} (more than 10 % are broken)")
    logger.warning("data set %s: %s", dataset.name, message)
    return replace(dataset, records=tuple(kept), skipped=(*dataset.skipped, message))
