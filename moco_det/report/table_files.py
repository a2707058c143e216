"""The AP tables as files: tables.csv for programs, tables.tex in the papers' layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moco_det.report.document import render
from moco_det.report.formats import ALL_METRICS, capital, signed
from moco_det.report.groups import ArmRuns, Group
from moco_det.report.paper_comparison import Counterpart, counterparts, deviation
from moco_det.results import AP_KEYS

HEADER = (
    "setting,config,iterations,batch,engine,engine_version,precision,train_fingerprint,"
    "test_fingerprint,arm,weights_sha256,ruler,metric,n,mean,std,against_supervised,low,high,p,"
    "p_corrected,verdict,published,published_source,deviation,mark"
)


def csv_text(groups: Sequence[Group]) -> str:
    """One line per setting, arm and metric; empty where there is no value."""
    text = io.StringIO(f"{HEADER}\n")
    text.seek(0, io.SEEK_END)
    writer = csv.writer(text, lineterminator="\n")
    for group in groups:
        data, engine, dataset = group.data, group.data["engine"], group.data["dataset"]
        shared = [group.index + 1, *(data[key] for key in ("config_name", "iterations", "batch"))]
        shared += [engine["name"], engine["version"], data["precision"]]
        trained_on = dataset.get("train_share") or dataset["train_fingerprint"]
        shared += [trained_on, dataset["test_fingerprint"]]
        published = {one.arm.label: one for one in reversed(counterparts(group))}
        for metric in group.all_metrics:
            for arm in group.arms:
                for key in AP_KEYS:
                    found = _cells(group, arm, metric, key, published.get(arm.label))
                    named = [arm.label, arm.init["sha256"], metric, key]
                    writer.writerow([*shared, *named, *found])
    return text.getvalue()


def _cells(
    group: Group, arm: ArmRuns, metric: str, key: str, paper: Counterpart | None
) -> list[object]:
    trials, gap = arm.trials(metric, key), group.against(arm, group.supervised, metric, key)
    against: list[object] = [None] * 6
    if gap is not None:
        against = [*map(_rounded, (gap.difference, gap.low, gap.high))]
        against += [_rounded(gap.p, 6), _rounded(gap.p_holm, 6), gap.verdict]
    published: list[object] = [None] * 4
    if paper is not None and (away := deviation(paper, metric, key)) is not None:
        source = f"{paper.table.citation}, {paper.row.label}"
        differs = f": {'; '.join(paper.differs)}" if paper.differs else ""
        published = [away.published, source, _rounded(away.value), away.word + differs]
    return [trials.n, _rounded(trials.mean), _rounded(trials.std), *against, *published]


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def tex_text(groups: Sequence[Group]) -> str:
    """One table per setting: arms as rows, box and mask AP as columns, gains green, losses red.

    Needs the packages booktabs and xcolor. A difference beyond noise is in colour.
    """
    keys = {"AP": "AP", "AP50": "AP$_{50}$", "AP75": "AP$_{75}$"}
    names = {metric: capital(name) for metric, name in ALL_METRICS.items()}
    shown = {"groups": groups, "keys": keys, "names": names}
    return render("tables.tex.j2", {**shown, "cell": _tex_cell, "escaped": escaped})


def _tex_cell(group: Group, arm: ArmRuns, metric: str, key: str) -> str:
    trials, gap = arm.trials(metric, key), group.against(arm, group.supervised, metric, key)
    if trials.mean is None:
        return "--"
    text = f"{trials.mean:.1f}"
    if trials.std is not None:
        text += rf" $\pm$ {trials.std:.1f}"
    if gap is None or gap.difference is None:
        return text
    command = {"higher": "gain", "lower": "loss"}.get(gap.verdict, "nogap")
    return rf"{text} \{command}{{{signed(gap.difference).replace('−', '$-$')}}}"


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "−": "$-$",
        **{character: f"\\{character}" for character in "{}$&%#_"},
    }
)


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(_TEX)
