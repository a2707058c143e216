"""Probes in the report: tables of their own, nothing averaged that does not belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moco_det.report import make_report
from moco_det.report.document import Text
from moco_det.report.groups import group_probes
from moco_det.report.probes import accuracy_curve, accuracy_table, blocks, published_table
from moco_det.results import Row, validate_row
from moco_det.results.published import find_table

KNN = {"arch": "resnet18", "size": 64, "features": "pooled", "k": 20, "temperature": 0.07}

MakeProbe = Callable[..., dict[str, Any]]


@pytest.fixture
def make_probe(make_row: Any) -> MakeProbe:
    """A probe's row; `settings` digests the pre-training's config, `sha` the weights."""

    def make(
        arm: str = "moco",
        seed: int = 0,
        top1: float = 40.0,
        *,
        protocol: str = "knn",
        config: dict[str, Any] | None = None,
        iterations: int | None = 1000,
        sha: str | None = None,
        settings: str = "s" * 64,
        **changes: Any,
    ) -> dict[str, Any]:
        row = make_row(arm, seed, iterations=iterations, **changes)
        known = arm != "random"
        row |= {
            "run": f"{protocol}_{arm}_{iterations}_seed{seed}",
            "task": "probe",
            "protocol": protocol,
            "config_name": protocol,
            "config": yaml.safe_dump(KNN if config is None else config),
            "metrics": {"probe": {"top1": top1, "top5": top1 + 5, "mean_class": top1 - 5}},
        }
        row["init"] |= {
            "sha256": (sha or f"{arm}{seed}{iterations}").encode().hex() if known else None,
            "source": {"settings": settings} if known else None,
        }
        validate_row(row)
        return row

    return make


def rows_of(*rows: dict[str, Any]) -> list[Row]:
    return [Row(data=row, path=Path("results.jsonl"), line=i) for i, row in enumerate(rows, 1)]


def cells(group: Any) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in accuracy_table(group).rows]


def test_trials_of_an_arm_are_averaged(make_probe: MakeProbe) -> None:
    rows = rows_of(
        *(make_probe("moco", s, t) for s, t in ((0, 40.0), (1, 42.0), (2, 44.0))),
        make_probe("random", 0, 36.0, iterations=0),
        make_probe("random", 1, 35.0, iterations=0),
    )
    (group,) = group_probes(rows)
    assert cells(group) == [
        ("random", "0", "2", "2", "35.5 ± 0.7", "40.5 ± 0.7", "30.5 ± 0.7"),
        ("moco", "1,000", "3", "3", "42.0 ± 2.0", "47.0 ± 2.0", "37.0 ± 2.0"),
    ]
    note = accuracy_table(group).rows[1][4].note
    assert note.startswith("+6.5 [")


def test_seeds_of_a_probe_over_the_same_weights_are_trials_of_one_file(
    make_probe: MakeProbe,
) -> None:
    rows = [make_probe(seed=s, protocol="linear", config={"size": 64}, sha="one") for s in (0, 1)]
    (group,) = group_probes(rows_of(*rows))
    assert cells(group)[0][2:4] == ("2", "1")


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "linear"},
        {"config": {**KNN, "size": 96}},
        {"config": {**KNN, "k": 200}},
        {"config": {**KNN, "arch": "resnet50"}},
        {"fingerprint": "e" * 64},
        {"precision": "bfloat16"},
    ],
)
def test_other_protocols_sizes_and_data_stand_apart(
    make_probe: MakeProbe, other: dict[str, Any]
) -> None:
    groups = group_probes(rows_of(make_probe(), make_probe(seed=1, **other)))
    assert [len(group.rows) for group in groups] == [1, 1]


def test_a_name_with_two_ways_of_pre_training_is_two_arms(make_probe: MakeProbe) -> None:
    rows = rows_of(make_probe(seed=0), make_probe(seed=1, settings="t" * 64))
    (group,) = group_probes(rows)
    assert sorted(arm.label for arm in group.arms) == ["moco [ssssssss]", "moco [tttttttt]"]


def test_arms_of_fine_tuning_may_have_rates_of_their_own(make_probe: MakeProbe) -> None:
    base = {"size": 64, "epochs": 10, "lr": 0.03, "head_lr": 0.03}
    scratch = {**base, "lr": 0.1, "head_lr": 0.1}
    rows = rows_of(
        make_probe(protocol="finetune", config=base),
        make_probe("random", iterations=0, protocol="finetune", config=scratch),
        make_probe(protocol="finetune", config={**base, "epochs": 20}),
    )
    first, second = group_probes(rows)
    labels = ["random (lr 0.1, head_lr 0.1)", "moco (lr 0.03, head_lr 0.03)"]
    assert [arm.label for arm in first.arms] == labels
    assert [arm.label for arm in second.arms] == ["moco"]


def test_a_repetition_is_not_a_trial(make_probe: MakeProbe) -> None:
    (group,) = group_probes(rows_of(make_probe(top1=40.0), make_probe(top1=41.0)))
    assert [row.metric("probe", "top1") for row in group.rows] == [41.0]
    assert [row.metric("probe", "top1") for row in group.repeated] == [40.0]


def test_steps_of_an_arm_make_lines_and_a_curve(make_probe: MakeProbe) -> None:
    rows = rows_of(
        make_probe(iterations=2000, top1=44.0),
        make_probe(iterations=1000, top1=40.0),
        make_probe("random", iterations=0, top1=36.0),
    )
    (group,) = group_probes(rows)
    assert [line[:2] for line in cells(group)] == [
        ("random", "0"),
        ("moco", "1,000"),
        ("moco", "2,000"),
    ]
    curve = accuracy_curve(group)
    assert curve is not None and "moco n=1" in curve.caption and curve.svg.count("<circle") == 3
    (single,) = group_probes(rows[:1])
    assert accuracy_curve(single) is None


def test_unknown_steps_are_a_dash_and_no_point_of_the_curve(make_probe: MakeProbe) -> None:
    rows = rows_of(
        make_probe(iterations=1000),
        make_probe(iterations=2000),
        make_probe("torchvision", iterations=None),
    )
    (group,) = group_probes(rows)
    assert cells(group)[-1][:2] == ("torchvision", "–")
    curve = accuracy_curve(group)
    assert curve is not None and "torchvision" not in curve.caption


def test_published_numbers_stand_beside_their_own_protocol_only(make_probe: MakeProbe) -> None:
    setting = dict(find_table("moco_v1.table1").setting)
    data = {key: setting.pop(key) for key in ("train_images", "test_images")}
    row = make_probe(protocol="linear", config={"arch": "resnet50", **setting})
    row["dataset"] |= {"classes": [str(i) for i in range(setting["classes"])], **data}
    (group,) = group_probes(rows_of(row))
    table = published_table(group)
    assert table is not None
    found = {tuple(cell.text for cell in line) for line in table.rows}
    assert ("MoCo v1, 200 epochs", "MoCo (He et al. 2020), Table 1", "60.6") in found
    (small,) = group_probes(rows_of(make_probe()))
    assert published_table(small) is None
    said = [str(block.sentences[0]) for block in blocks([small]) if isinstance(block, Text)]
    assert "none is shown" in said[-1]


def report(rows: list[dict[str, Any]], write_rows: Any, out: Path) -> tuple[str, str]:
    files = make_report([write_rows(rows)], out)
    texts = [files[name].read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    return texts[0], texts[1]


def test_a_file_of_probes_alone_makes_a_report(
    make_probe: MakeProbe, write_rows: Any, tmp_path: Path
) -> None:
    rows = [make_probe(), make_probe("random", iterations=0), make_probe(seed=9, status="failed")]
    html, md = report(rows, write_rows, tmp_path / "out")
    for text in (html, md):
        assert "Probes of features" in text and "40.0" in text
        assert "Average precision" not in text and "Verdict" not in text
        assert "box AP" not in text and "converted without loss" not in text
    assert 'href="#probes"' in html and 'href="#ap"' not in html
    assert "2 probes in 1 setting" in md and "1 failed run left out" in md


def test_a_file_of_both_keeps_them_apart(
    make_probe: MakeProbe, make_row: Any, write_rows: Any, tmp_path: Path
) -> None:
    aps = [make_row(arm, s, (30.0 + s, 50.0, 20.0)) for arm in ("moco", "random") for s in (0, 1)]
    probes = [make_probe(top1=71.7), make_probe("random", iterations=0)]
    _, alone = report(aps, write_rows, tmp_path / "alone")
    html, both = report([*aps, *probes], write_rows, tmp_path / "both")
    assert "4 finished runs in 1 setting and 2 probes in 1 setting" in both
    probed = both.index("## Probes of features"), both.index("## Runs, environment")
    alone = alone[: alone.index("## Runs, environment")]
    assert both[both.index("## Verdict") : probed[0]] == alone[alone.index("## Verdict") :]
    assert "71.7" in both[slice(*probed)] and "71.7" in html
    assert "Probes of features" not in alone


def test_without_any_finished_row_both_tools_are_named(
    make_probe: MakeProbe, write_rows: Any, tmp_path: Path
) -> None:
    from moco_det.foundation.errors import InputError

    with pytest.raises(InputError, match="moco-det train-net or moco-det probe"):
        make_report([write_rows([make_probe(status="failed")])], tmp_path / "out")


def test_features_below_random_weights_are_a_warning(make_probe: MakeProbe) -> None:
    random = make_probe("random", 0, 36.0, iterations=0)
    groups = group_probes(rows_of(random, make_probe("moco", 0, 35.0), make_probe("sup", 0, 36.0)))
    texts = [block for block in blocks(groups) if isinstance(block, Text)]
    (warning,) = [text for text in texts if text.style == "notice"]
    (said,) = warning.sentences
    assert (said.finding, said.text[:25]) == ("Warning:", " the features of moco tel")
