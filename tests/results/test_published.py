"""The file of published results: readable, sourced, and free of contradictions."""

from __future__ import annotations

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results.published import (
    METHOD_NAMES,
    find_table,
    published_accuracies,
    published_tables,
)


def test_every_table_names_its_source_and_every_value_is_a_percentage() -> None:
    tables = published_tables()
    assert len(tables) > 30
    for table in tables.values():
        assert table.source["short"] and table.source["full"] and table.place and table.rows
        assert len({row.key for row in table.rows}) == len(table.rows)
        for row in table.rows:
            assert row.values and set(row.values) <= set(table.columns)
            assert all(0 < value < 100 for value in row.values.values()), (table.id, row.key)


def test_gains_over_supervised_are_those_that_the_papers_print() -> None:
    printed = {
        ("moco_v1.table2a", "moco_in_1m", "voc.AP"): 0.6,
        ("moco_v1.table2b", "moco_in_1m", "voc.AP75"): 3.8,
        ("moco_v1.table2b", "moco_ig_1b", "voc.AP"): 3.7,
        ("moco_v1.table5a", "moco_in_1m", "bbox.AP"): -0.4,
        ("moco_v1.table5b", "moco_in_1m", "segm.AP"): 0.1,
        ("moco_v1.table5d", "moco_ig_1b", "bbox.AP75"): 1.7,
        ("moco_v1.tableA1b", "moco_in_1m", "segm.AP50"): 0.5,
        ("moco_v1.table6.coco_keypoint", "moco_in_1m", "keypoints.AP"): 1.0,
    }
    for (table, key, column), gain in printed.items():
        values = find_table(table).row(key).values[column]
        supervised = find_table(table).row("super_in_1m").values[column]
        assert round(values - supervised, 1) == gain, (table, key, column)


def test_a_row_that_two_tables_repeat_has_the_same_values() -> None:
    left, right = find_table("moco_v1.table2b"), find_table("moco_v1.table3b")
    assert left.row("moco_in_1m").values == right.row("moco").values
    code = find_table("moco_repo.voc_r50c4").row("imagenet_1m_moco_v2_200ep")
    assert code.values == find_table("moco_v2.table1").row("moco_v2_200_epochs").values
    assert code.label == "MoCo v2, 200 epochs"


def test_an_unknown_table_or_row_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"moco_v9.*there are moco_v1\.table2a"):
        find_table("moco_v9.table1")
    with pytest.raises(InputError, match=r"no row 'moco'; it has random_init, super_in_1m"):
        find_table("moco_v1.table5a").row("moco")


@pytest.mark.parametrize(
    ("table", "arch", "shown"),
    [
        ("npid.table2_imagenet_cvpr", "resnet18", {("InstDisc", 40.5), ("InstDisc", 41.0)}),
        (
            "moco_v1.table1",
            "resnet50",
            {("MoCo v1, 200 epochs", 60.6), ("MoCo v2, 800 epochs", 71.1)},
        ),
    ],
)
def test_a_probe_is_shown_the_published_accuracies_of_its_own_setting_only(
    table: str, arch: str, shown: set[tuple[str, float]]
) -> None:
    protocol = find_table(table).task
    setting = {**find_table(table).setting, "arch": arch}
    found = [row for _, row in published_accuracies(protocol, setting)]
    assert shown <= {(row.label, row.values["probe.top1"]) for row in found}
    assert all(row.arch == arch and row.method in METHOD_NAMES for row in found)
    values = [(row.label, row.values["probe.top1"]) for row in found]
    assert len(values) == len(set(values))
    for other in ({"size": 96}, {"classes": 100}, {"train_images": 126689}, {"arch": "resnet34"}):
        assert published_accuracies(protocol, {**setting, **other}) == []
    assert published_accuracies("linear_lbfgs", setting) == []


def test_fine_tuning_on_imagenet_is_comparable_at_no_epochs_as_the_paper_states_none() -> None:
    setting = {**find_table("moco_v1.appendix_imagenet_ft").setting, "arch": "resnet50"}
    for epochs in (90, 100):
        assert published_accuracies("finetune", {**setting, "epochs": epochs, "batch": 256}) == []


def test_weights_that_nothing_trained_are_published_as_pretrained_on_nothing() -> None:
    rows = [(table.id, row) for table in published_tables().values() for row in table.rows]
    random = [(table, row.pretrained_on) for table, row in rows if row.method == "random"]
    assert len(random) > 10 and {data for _, data in random} == {"none"}, random
