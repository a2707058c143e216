"""Folds of one share of the training data are trials of one setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_det.report.families import BY_LABELS, blocks
from moco_det.report.groups import Group, apart_because, group_runs
from moco_det.report.provenance import warnings_of
from moco_det.report.tables import certainty_table
from moco_det.results import Row, Rows


def share(
    make_row: Any, percent: int, *, seeds: Sequence[int] = (0,), of: str = "set", folds: int = 3
) -> list[Row]:
    """Both arms on each fold, which moves their AP together: paired they differ by exactly 1."""
    found = []
    for arm, gain in (("supervised", 0.0), ("moco", 1.0)):
        for fold in range(folds):
            for seed in seeds:
                row = make_row(arm, seed, (percent + 5 * fold + gain + seed, 60.0, 30.0))
                fingerprint = f"{of}{percent:02d}{fold}".ljust(64, "0")
                name = f"voc://{of}?split=train&percent={percent}" + f"&fold={fold}" * bool(fold)
                row["dataset"] |= {"train_fingerprint": fingerprint, "train_images": 10 * percent}
                row["dataset"] |= {"train_share": f"{percent} percent of {of.ljust(64, '0')}"}
                row["config"] = row["config"].replace("toy_train", f'"{name}"')
                found.append(Row(data=row, path=Path("results.jsonl"), line=len(found) + 1))
    return found


def test_every_fold_is_a_trial_and_arms_are_paired_by_it(make_row: Any) -> None:
    (group,) = group_runs(share(make_row, 5))
    assert [arm.trials("bbox").values for arm in group.arms] == [(5, 10, 15), (6, 11, 16)]
    assert group.repeated == () and group.matched.ok
    table = certainty_table(group)
    assert table is not None
    paired = table.rows[0][list(table.header).index("paired")]
    assert (paired.text, paired.note) == ("+1.0", "no spread measured, 3 pairs")


def test_another_share_and_another_set_are_other_settings(make_row: Any) -> None:
    rows = [*share(make_row, 5), *share(make_row, 10), *share(make_row, 5, of="other")]
    first, second, third = group_runs(rows)
    said = "training data: 5 percent of set000000000 → 10 percent of set000000000"
    assert said in apart_because(second, first)
    assert any("5 percent of other0000000" in line for line in apart_because(third, first))


def test_shares_are_the_points_of_ap_by_labelled_images(make_row: Any) -> None:
    groups: list[Group] = group_runs([*share(make_row, 5), *share(make_row, 10)])
    _, table, _ = blocks(groups, BY_LABELS)
    assert table.header == ("arm", "50 images", "100 images")  # type: ignore[union-attr]
    assert [cell.note for cell in table.rows[0][1:]] == ["n=3", "n=3"]  # type: ignore[union-attr]


def test_several_seeds_on_one_fold_are_warned_of(make_row: Any) -> None:
    once, twice = share(make_row, 5), share(make_row, 5, seeds=(0, 1))
    for rows, warned in ((once, False), (twice, True)):
        groups = group_runs(rows)
        lines = warnings_of(Rows(tuple(rows), ()), groups, [])
        assert any("Setting A has 3 folds with several seeds" in line for line in lines) == warned
    assert group_runs(twice)[0].arms[0].trials("bbox").n == 6
