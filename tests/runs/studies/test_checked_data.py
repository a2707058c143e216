"""What a later piece would refuse of the data is told before the first one starts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.runs.studies import flow
from moco_det.runs.studies.data_sets import read_data
from moco_det.runs.studies.pieces import build_pieces
from moco_det.runs.studies.study import read_study
from pretrain.build import check_images
from pretrain.config import load_config
from pretrain.probe.features import labelled_pair
from tests.data.builders import write_image, write_voc

STUDY = """
question: Is it so?
data: {photos: {}}
pretraining:
  config: demo_moco_r18
  set: {DATA.PATH: $photos/train, SOLVER.BATCH: 4, MOCO.K: 16, DATA.IMAGES: 0}
encoders: {moco: {}}
probes:
  knn: {train: $photos/train, test: $photos/test}
  other: {train: $photos/train, test: $photos/nowhere}
settings:
  small:
    config: demo_R18_FPN
    set:
      DATASETS: {TRAIN: ["voc://$photos?split=train"], TEST: ["voc://$photos?split=test"]}
      MODEL: {MASK_ON: False, ROI_HEADS: {NUM_CLASSES: 2}}
  other:
    config: demo_R18_FPN
    set: {DATASETS: {TRAIN: ["voc://$photos?split=none"], TEST: ["voc://$photos?split=none"]}}
hypotheses:
  - {claim: moco.knn > random.knn}
  - {claim: moco.AP at small > random.AP at small}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NUM_CLASSES: 2", "NUM_CLASSES: 3", "x: the setting small: MODEL.ROI_HEADS.NUM_CLASSES"),
        ("split=test", "split=tset", "x: the setting small: DATASETS.TEST: .*tset"),
        ("MASK_ON: False", "MASK_ON: True", "x: the setting small: MODEL.MASK_ON is True"),
        ("DATA.PATH: $photos/train", "DATA.PATH: $photos/x", "the encoder moco: DATA.PATH .*/x"),
        ("BATCH: 4", "BATCH: 32", "the encoder moco: DATA.PATH"),
        (
            "train, SOLVER",
            "train/dog, METHOD: supervised, SOLVER",
            "METHOD supervised needs labels",
        ),
        ("DATA.IMAGES: 0", "KNN.TRAIN: $photos/train/dog", "the encoder moco: KNN.TRAIN"),
        ("test: $photos/test", "test: $photos/y", "test of the probe knn .*/y does not exist"),
        # what no hypothesis needs is not looked at
        ("nothing is wrong", "", ""),
    ],
)
def test_data_are_checked_before_the_first_piece(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    photos, file = tmp_path / "photos", tmp_path / "x.yaml"
    for number in range(12):
        split, name = ("train", "test")[number > 7], ("dog", "cat")[number % 2]
        write_image(photos / split / name / f"{number}.jpg", seed=number)
    boxes = [("nut", 2, 3, 20, 19), ("bolt", 4, 4, 20, 19)]
    for split in ("train", "test"):
        write_voc(photos, {split: boxes}, split)
    file.write_text(STUDY.replace(old, new), encoding="utf-8")
    study = read_study(file)
    data = read_data([study], [f"photos={photos}"], tmp_path)
    matrix = build_pieces([study], tmp_path, data, seeds=[0, 1], engine="standalone", device="cpu")
    with pytest.raises(InputError, match=message) if message else nullcontext():
        flow.check_data(
            [study],
            matrix,
            tmp_path,
            data,
            read_config=load_config,
            check_images=check_images,
            check_pair=labelled_pair,
        )
