"""The AP tables as files: tables.csv for programs, tables.tex in the papers' layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moco_det.report.against_papers import Beside, counterparts, mark
from moco_det.report.formats import listed, sentence, signed
from moco_det.report.groups import Arm, Group
from moco_det.report.statistics import Comparison
from moco_det.report.verdict import RULERS

KEYS = ("AP", "AP50", "AP75")
_NAMES = {**RULERS, "voc": "box AP by the VOC ruler"}

COLUMNS = (
    "setting",
    "config",
    "iterations",
    "batch",
    "engine",
    "engine_version",
    "precision",
    "train_fingerprint",
    "test_fingerprint",
    "arm",
    "weights_sha256",
    "ruler",
    "metric",
    "n",
    "mean",
    "std",
    "against_supervised",
    "low",
    "high",
    "p",
    "p_corrected",
    "verdict",
    "published",
    "published_source",
    "deviation",
    "mark",
)


def csv_text(groups: Sequence[Group]) -> str:
    """One line a setting, arm and metric; empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for number, group in enumerate(groups, start=1):
        data = group.first.data
        shared = {
            "setting": number,
            "config": data["config_name"],
            "iterations": data["iterations"],
            "batch": data["batch"],
            "engine": data["engine"]["name"],
            "engine_version": data["engine"]["version"],
            "precision": data["precision"],
            "train_fingerprint": data["dataset"]["train_fingerprint"],
            "test_fingerprint": data["dataset"]["test_fingerprint"],
        }
        beside: dict[str, Beside] = {}
        for found in counterparts(group):
            beside.setdefault(found.arm.label, found)
        for ruler in (name for name in _NAMES if group.has(name)):
            for arm in group.arms:
                for key in KEYS:
                    writer.writerow({**shared, **_cells(group, arm, ruler, key, beside)})
    return text.getvalue()


def _cells(
    group: Group, arm: Arm, ruler: str, key: str, beside: dict[str, Beside]
) -> dict[str, object]:
    summary = arm.summary(ruler, key)
    gap = group.against(arm, group.supervised, ruler, key)
    found = beside.get(arm.label)
    cell = mark(found, ruler, key) if found is not None else None
    line: dict[str, object] = {
        "arm": arm.label,
        "weights_sha256": arm.sha256,
        "ruler": ruler,
        "metric": key,
        "n": summary.n,
        "mean": _rounded(summary.mean),
        "std": _rounded(summary.std),
    }
    if gap is not None:
        line |= {
            "against_supervised": _rounded(gap.difference),
            "low": _rounded(gap.low),
            "high": _rounded(gap.high),
            "p": _rounded(gap.p, 6),
            "p_corrected": _rounded(gap.p_holm, 6),
            "verdict": gap.verdict,
        }
    if cell is not None and found is not None:
        line |= {
            "published": cell.published,
            "published_source": f"{found.table.citation}, {found.row.label}",
            "deviation": _rounded(cell.deviation),
            "mark": cell.word if not found.differs else f"{cell.word}: {'; '.join(found.differs)}",
        }
    return line


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def tex_text(groups: Sequence[Group]) -> str:
    """One table a setting: arms as rows, box and mask AP as columns, gains green, losses red.

    Needs the packages booktabs and xcolor. A difference beyond noise is in colour.
    """
    lines = [
        "% Needs \\usepackage{booktabs} and \\usepackage{xcolor}.",
        "\\definecolor{gain}{HTML}{00714F}",
        "\\definecolor{loss}{HTML}{B3400A}",
        "\\providecommand{\\gain}[1]{\\textcolor{gain}{\\scriptsize (#1)}}",
        "\\providecommand{\\loss}[1]{\\textcolor{loss}{\\scriptsize (#1)}}",
        "\\providecommand{\\nogap}[1]{{\\scriptsize (#1)}}",
    ]
    for number, group in enumerate(groups, start=1):
        lines += ["", *_tex_table(group, number)]
    return "\n".join(lines) + "\n"


def _tex_table(group: Group, number: int) -> list[str]:
    rulers = [ruler for ruler in _NAMES if group.has(ruler)]
    columns = [(ruler, key) for ruler in rulers for key in KEYS]
    spans = " & ".join(
        f"\\multicolumn{{{len(KEYS)}}}{{c}}{{{sentence(_NAMES[ruler])}}}" for ruler in rulers
    )
    rules = " ".join(f"\\cmidrule(lr){{{3 + 3 * i}-{5 + 3 * i}}}" for i in range(len(rulers)))
    names = " & ".join(
        {"AP": "AP", "AP50": "AP$_{50}$", "AP75": "AP$_{75}$"}[key] for _, key in columns
    )
    body = [
        f"{escaped(arm.label)} & {len(arm.rows)} & "
        + " & ".join(_tex_cell(group, arm, ruler, key) for ruler, key in columns)
        + " \\\\"
        for arm in group.arms
    ]
    counts = listed([f"{arm.label} {len(arm.rows)}" for arm in group.arms])
    return [
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{lr{'c' * len(columns)}}}",
        "\\toprule",
        f" & & {spans} \\\\",
        rules,
        f"pre-train & $n$ & {names} \\\\",
        "\\midrule",
        *body,
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{escaped(group.title)}. Mean $\\pm$ sample standard deviation; in brackets "
        "the difference to supervised, in colour where it is beyond noise (Welch, 95\\,\\%, "
        f"Holm-corrected over the arms on trial). Trials: {escaped(counts)}.}}",
        f"\\label{{tab:setting-{number}}}",
        "\\end{table}",
    ]


def _tex_cell(group: Group, arm: Arm, ruler: str, key: str) -> str:
    summary = arm.summary(ruler, key)
    if summary.mean is None:
        return "--"
    text = f"{summary.mean:.1f}"
    if summary.std is not None:
        text += f" $\\pm$ {summary.std:.1f}"
    gap = group.against(arm, group.supervised, ruler, key)
    return text if gap is None else f"{text} {_tex_gap(gap)}"


def _tex_gap(gap: Comparison) -> str:
    if gap.difference is None:
        return ""
    command = {"higher": "gain", "lower": "loss"}.get(gap.verdict, "nogap")
    return f"\\{command}{{{signed(gap.difference).replace('−', '$-$')}}}"


_TEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "%": "\\%",
    "#": "\\#",
    "_": "\\_",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "·": "$\\cdot$",
    "×": "$\\times$",
    "−": "$-$",
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(character, character) for character in text)
