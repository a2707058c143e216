"""Rows are averaged only with rows of the same setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moco_det.report.formats import short_name
from moco_det.report.groups import apart_because, group_runs, parse_config
from moco_det.results import Row
from moco_det.results.matched import flatten_config


def rows(*data: dict[str, Any]) -> list[Row]:
    return [Row(data=item, path=Path("results.jsonl"), line=i + 1) for i, item in enumerate(data)]


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "detectron2"},
        {"precision": "bfloat16"},
        {"fingerprint": "0" * 64},
        {"iterations": 200},
        {"lr": 0.04},
        {"batch": 4},
        {"mask": (1.0, 1.0, 1.0)},
    ],
)
def test_a_change_of_setting_sets_rows_apart(make_row: Any, change: dict[str, Any]) -> None:
    groups = group_runs(rows(make_row(seed=0), make_row(seed=1, **change)))
    assert len(groups) == 2
    assert [len(group.rows) for group in groups] == [1, 1]
    assert apart_because(groups[1], groups[0])


def test_arm_seed_and_weights_do_not_set_rows_apart(make_row: Any) -> None:
    (group,) = group_runs(
        rows(*(make_row(arm, seed) for arm in ("moco", "supervised", "random") for seed in (1, 0)))
    )
    assert [arm.label for arm in group.arms] == ["random", "supervised", "moco"]
    assert [row.seed for row in group.arms[2].rows] == [0, 1]
    assert group.supervised is group.arms[1]
    assert group.random is group.arms[0]


def test_a_study_begun_on_a_gpu_and_gone_on_with_without_one_is_one_setting(make_row: Any) -> None:
    other = make_row(seed=1)
    other["config"] += "MODEL.DEVICE: cpu\n"
    (group,) = group_runs(rows(make_row(seed=0), other))
    assert len(group.rows) == 2


def test_failed_rows_are_in_no_group(make_row: Any) -> None:
    (group,) = group_runs(rows(make_row(seed=0), make_row(seed=1, status="failed")))
    assert len(group.rows) == 1


def test_a_repeated_seed_is_one_trial_and_the_later_row_counts(make_row: Any) -> None:
    (group,) = group_runs(rows(make_row(box=(10.0, 10.0, 10.0)), make_row(box=(20.0, 20.0, 20.0))))
    assert group.arms[0].trials("bbox").values == (20.0,)
    assert len(group.repeated) == 1


def test_one_name_with_two_weights_files_is_two_arms(make_row: Any) -> None:
    other = make_row(seed=1)
    other["init"]["sha256"] = "abcdef01" + "0" * 56
    (group,) = group_runs(rows(make_row(seed=0), other))
    assert [arm.label for arm in group.arms] == ["moco [6d6f636f]", "moco [abcdef01]"]


def test_the_starts_of_one_pre_training_are_the_trials_of_one_arm(make_row: Any) -> None:
    starts = [make_row(seed=seed) for seed in (0, 1, 2)]
    for seed, settings in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        init = starts[seed]["init"]
        init["sha256"] = f"{seed}" * 64
        init["source"] = {**(init["source"] or {}), "settings": settings}
    (group,) = group_runs(rows(*starts))
    assert [len(arm.rows) for arm in group.arms] == [2, 1]
    assert [arm.label for arm in group.arms] == ["moco [aaaaaaaa]", "moco [bbbbbbbb]"]


def test_a_supervised_arm_with_two_weights_files_is_no_reference(make_row: Any) -> None:
    other = make_row("supervised", seed=1)
    other["init"]["sha256"] = "abcdef01" + "0" * 56
    (group,) = group_runs(rows(make_row("supervised"), other, make_row()))
    assert group.supervised is None


def test_colour_order_that_the_weights_demand_does_not_set_rows_apart(make_row: Any) -> None:
    bgr = make_row("sup_msra")
    bgr["config"] = bgr["config"].replace("RGB", "BGR")
    moco = make_row("moco")
    moco["init"]["input"] = {"format": "RGB", "stride_in_1x1": False}
    (group,) = group_runs(rows(make_row("random"), moco, bgr))
    assert [d.key for d in group.matched.forbidden] == ["INPUT.FORMAT"]
    bgr["init"]["input"] = {"format": "BGR"}
    (group,) = group_runs(rows(make_row("random"), moco, bgr))
    assert group.matched.ok


def test_one_weights_file_fed_in_two_ways_is_two_arms(make_row: Any) -> None:
    other = make_row(seed=1)
    other["config"] = other["config"].replace("RGB", "BGR")
    (group,) = group_runs(rows(make_row(seed=0), other))
    assert [len(arm.rows) for arm in group.arms] == [1, 1]
    assert len({arm.label for arm in group.arms}) == 2
    assert not group.matched.ok


def test_a_config_that_is_no_yaml_still_has_a_group(make_row: Any) -> None:
    assert len(group_runs(rows(make_row(config="A: ["), make_row(seed=1, config="A: [")))) == 1


def test_addresses_of_data_are_shortened_to_names() -> None:
    assert short_name("voc:///data/voc_bccd?split=test") == "voc_bccd (test)"
    assert short_name("coco:///data/val.json?images=/data/val") == "val.json"
    assert short_name("voc:///my%20data/blood%20cells?split=half%20a") == "blood cells (half a)"
    assert short_name("coco_2017_val") == "coco_2017_val"


@pytest.mark.parametrize(
    "text",
    [
        "A: {B: 1}\nOUTPUT_DIR: runs/a b\nSEED: 3\nZ: [1, 2]\n",
        "A: {B: 1}\nOUTPUT_DIR: a very long path that\n  goes on here\nSEED: 3\n",
        'OUTPUT_DIR: "x: y # z"\nSEED: -1\nA: |\n  SEED: 4\n',
        "SEED: 3",
    ],
)
def test_a_config_read_in_two_parts_is_the_config_read_as_one(text: str) -> None:
    assert dict(parse_config(text)) == flatten_config(text)


def test_a_config_with_a_key_given_twice_is_one_text(make_row: Any) -> None:
    text = "OUTPUT_DIR: a\nSEED: 3\nSEED: 4\n"
    assert dict(parse_config(text)) == {"config": text}


def test_several_arms_on_trial_are_corrected_together_and_one_is_not(make_row: Any) -> None:
    # 0.86 at n=3 and deviations of 0.4: t = 2.63; p is 0.039 of 6 degrees of freedom (three arms),
    # and of 8 (four arms) 0.030, twice which is 0.060
    def trials(arm: str, mean: float) -> list[dict[str, Any]]:
        return [make_row(arm, s, (mean + d, 50.0, 20.0)) for s, d in enumerate((-0.4, 0.0, 0.4))]

    one = rows(*trials("supervised", 30.0), *trials("moco", 30.86), *trials("random", 10.0))
    (group,) = group_runs(one)
    alone = group.against(group.arms[2], group.supervised, "bbox", "AP")
    assert alone is not None and alone.verdict == "higher" and alone.family == 1
    (group,) = group_runs([*one, *rows(*trials("dense", 30.1))])
    by_label = {arm.label: arm for arm in group.arms}
    both = group.against(by_label["moco"], group.supervised, "bbox", "AP")
    assert both is not None and both.family == 2 and both.p_holm == pytest.approx(2 * (both.p or 0))
    assert both.verdict == "not distinguishable after correction"
    control = group.against(by_label["random"], group.supervised, "bbox", "AP")
    assert control is not None and control.verdict == "lower" and control.p_holm is None
