"""Configs by name, from wherever the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_det import zoo
from moco_det.config import load_yaml
from moco_det.errors import InputError


def test_every_name_leads_to_a_file_that_is_a_config() -> None:
    names = zoo.names()
    assert len(names) == len(set(names)) == 84
    assert names == sorted(names)
    for name in names:
        assert load_yaml(zoo.get_config_file(name))["OUTPUT_DIR"] == f"runs/{name}"


def test_a_name_may_end_in_yaml() -> None:
    plain = zoo.get_config_file("coco_R50_FPN_2x_moco")
    assert zoo.get_config_file("coco_R50_FPN_2x_moco.yaml") == plain
    assert Path(plain).is_file()


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("coco_R50_FPN_2x_mocov3", "coco_R50_FPN_2x_mocov2"),
        ("voc_R_50_C4_24k_moco", "voc_R50_C4_24k_moco"),
        ("", "among the 84"),
        ("../secret", "among the 84"),
        ("base/RCNN_FPN", "among the 84"),
    ],
)
def test_a_name_that_is_none_is_an_error_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        zoo.get_config_file(wrong)
    assert near in str(caught.value) and repr(wrong) in str(caught.value)
