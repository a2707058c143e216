"""The file of published results: readable, sourced, and free of contradictions."""

from __future__ import annotations

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results.published import METHOD_NAMES, find_table, published_tables
from moco_det.results.published_probes import TABLES, published_accuracies


def test_every_table_names_its_source_and_every_value_is_a_percentage() -> None:
    tables = published_tables()
    assert len(tables) > 30
    for table in tables.values():
        assert table.source_short and table.source_full and table.place and table.rows
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


def test_probes_are_shown_the_accuracies_of_the_methods_trained_here() -> None:
    accuracies = published_accuracies()
    by_protocol = {
        protocol: [a for a in accuracies if a.protocol == protocol] for protocol in TABLES
    }
    assert all(by_protocol.values())
    assert {a.top1 for a in by_protocol["knn"] if a.arch == "resnet18"} == {40.5, 41.0}
    linear = {(a.name, a.top1) for a in by_protocol["linear"] if a.arch == "resnet50"}
    assert {("MoCo v1, 200 epochs", 60.6), ("MoCo v2, 800 epochs", 71.1)} <= linear
    assert all(a.name.split(",")[0] in METHOD_NAMES.values() for a in accuracies)
