"""Probes of the same weights beside their AP: do better features make a better detector?"""

from __future__ import annotations

from collections.abc import Sequence

from moco_det.report.formats import UNDEFINED, mean_std
from moco_det.report.groups import Arm, Group
from moco_det.report.probes import PROTOCOLS, Point, ProbeGroup
from moco_det.report.tables import Cell, Table, config_note


def beside_table(
    group: Group, probes: Sequence[ProbeGroup], colours: dict[str, int]
) -> Table | None:
    """The arms of a setting with the probes of their weights; None where no weights match.

    Weights are the same where the probed file is the detector's or the one that it was converted
    from, by sha256.
    """
    columns = []
    for probe in probes:
        cells = {arm.label: _point(arm, probe) for arm in group.arms}
        # A random arm is matched by name alone, which does not make a comparison.
        if any(cells[arm.label] for arm in group.arms if arm.sha256):
            columns.append((probe, cells))
    if not columns:
        return None
    body = tuple(
        (
            Cell(arm.label),
            Cell(mean_std(arm.summary("bbox", "AP")), f"n={arm.summary('bbox', 'AP').n}"),
            *(_cell(cells[arm.label]) for _, cells in columns),
        )
        for arm in group.arms
    )
    names = "; ".join(f"{_short(probe)}: {PROTOCOLS[_protocol(probe)]}" for probe, _ in columns)
    return Table(
        caption="Box AP of each arm, and top-1 of its weights before fine-tuning, percent: mean ± "
        f"sample standard deviation. {names}. {config_note(group)}",
        header=("arm", "box AP", *(f"top-1, {_short(probe)}" for probe, _ in columns)),
        rows=body,
        colours=tuple(colours[arm.label] for arm in group.arms),
    )


def _point(arm: Arm, probe: ProbeGroup) -> Point | None:
    wanted = set()
    for row in arm.rows:
        init = row.data["init"]
        wanted |= {init["sha256"], (init["source"] or {}).get("sha256")}
    wanted.discard(None)
    for candidate in probe.arms:
        for point in candidate.points:
            if any(row.data["init"]["sha256"] in wanted for row in point.rows):
                return point
            if not wanted and candidate.name == arm.name and point.iterations in (0, None):
                return point  # random weights have no file
    return None


def _cell(point: Point | None) -> Cell:
    if point is None:
        return Cell(UNDEFINED, "not probed")
    summary = point.summary("top1")
    return Cell(mean_std(summary), f"n={summary.n}")


def _protocol(probe: ProbeGroup) -> str:
    return str(probe.first.data["protocol"])


def _short(probe: ProbeGroup) -> str:
    return {"knn": "kNN", "linear": "linear", "linear_lbfgs": "linear (L-BFGS)"}.get(
        _protocol(probe), _protocol(probe)
    )
