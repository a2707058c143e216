"""A conversion and an inspection as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.convert import Conversion
from moco_det.weights.reading import printable
from moco_det.weights.timm_checkpoint import AnyCheckpoint, TimmCheckpoint


def conversion_lines(conversion: Conversion) -> list[str]:
    """The report of a conversion."""
    source, count = conversion.source, conversion.tensors
    if len(source.encoders) == 1:
        encoder = "the only one"
    elif source.encoder_named:
        encoder = source.encoder
    else:
        encoder = f"{source.encoder} (the default; also there: {', '.join(source.encoders[1:])})"
    stages = "  ".join(f"{stage} {value:.1e}" for stage, value in conversion.per_stage.items())
    if isinstance(source, TimmCheckpoint):
        how, architecture = f"{source.named_by} says so", source.name
        whose = "timm's network against the converted one, every tensor perturbed"
    else:
        how = "named by --from" if source.forced else "recognised from its keys"
        if source.resnet is not None:
            how += f", found by its names, {source.resnet.where}"
        architecture = f"{source.architecture} ({ARCHITECTURES[source.architecture]})"
        whose = "torchvision's network against the converted one"
    return [
        f"input         {printable(source.path)} ({source.contents.kind}), sha256 {source.sha256}",
        f"format        {source.format} ({how})",
        f"architecture  {architecture}",
        f"encoder       {encoder}",
        f"pixels        {_pixels(source.input)}{_said_by(source)}",
        f"tensors       {count} of {count} backbone tensors",
        f"left out      {_left_out(conversion)}",
        f"difference    {stages}  (largest, {whose})",
        *(f"warning: {warning}" for warning in conversion.warnings),
        f"written       {printable(conversion.output)} as {conversion.target_format}, "
        f"sha256 {conversion.sha256}",
    ]


def _said_by(source: AnyCheckpoint) -> str:
    return f" (as {source.input_from} says)" if isinstance(source, TimmCheckpoint) else ""


def _left_out(conversion: Conversion) -> str:
    source, parts = conversion.source, []
    if isinstance(source, TimmCheckpoint):
        names = [*conversion.left, *source.others]
        return f"{len(names)} named {_short(names, 3)}" if names else "nothing"
    if source.other_encoder:
        parts.append(f"{source.other_encoder} of the other encoder")
    if source.head:
        parts.append(f"{len(source.head)} named as head: {_short(source.head, 3)}")
    if source.counters:
        parts.append(f"{len(source.counters)} batch counters")
    if source.contents.foreign:
        parts.append(f"foreign objects, not opened: {', '.join(source.contents.foreign[:4])}")
    return "; ".join(parts) or "nothing"


def _pixels(stated: Mapping[str, Any] | None) -> str:
    if stated is None:
        return "not stated in the file"
    if "stride_in_1x1" in stated:
        stride = "1x1" if stated["stride_in_1x1"] else "3x3"
        more = f"stride in the {stride} convolution"
    else:
        more = f"{stated['interpolation']} resizing to {stated['input_size']}"
    return f"{stated['format']}, mean {stated['mean']}, std {stated['std']}, {more}"


def _short(texts: Sequence[str], count: int = 4) -> str:
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def table_lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts of `inspect` as a table."""
    rows: list[tuple[str, str]] = [
        ("file", f"{facts['file']} ({facts['stored_as']}, {facts['bytes']:,} bytes)"),
        ("sha256", facts["sha256"]),
        ("format", facts["format"] or "none that is known"),
        *([("prefix", repr(facts["prefix"]))] if facts["prefix"] is not None else []),
    ]
    if facts["architecture"] is None:
        rows += [("tensors", _table_text(table)) for table in facts["tables"]] or [
            ("tensors", "none")
        ]
    else:
        rows += _recognised_rows(facts)
    rows.append(("foreign objects", _short(facts["foreign_objects"]) or "none"))
    rows += [("warning", text) for text in facts["warnings"]]
    rows.append(("convertible", "yes" if facts["convertible"] else "no"))
    lines = [f"{name:16s}{text}" for name, text in rows]
    return lines + (_stage_lines(facts["stages"]) if facts["stages"] else [])


def _recognised_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    others = [name for name in facts["encoders"] if name != facts["encoder"]]
    encoder = facts["encoder"] + (f" (also there: {', '.join(others)})" if others else " (alone)")
    verified = facts["verified"]
    return [
        ("architecture", f"{facts['architecture']}, {facts['parameters']:,} parameters"),
        ("tensors", f"{facts['backbone_tensors']} of the backbone, {', '.join(facts['dtypes'])}"),
        ("head", _short(facts["head"]) or "none"),
        ("encoder", encoder),
        ("channel order", _pixels(facts["input"])),
        ("source", _short([f"{k} {v}" for k, v in (facts["source"] or {}).items() if v]) or "-"),
        ("verified", f"{verified['max_abs_difference']:.3g}" if verified else "-"),
    ]


def _table_text(table: Mapping[str, Any]) -> str:
    first = [f"{t['name'][:80]} {'x'.join(map(str, t['shape']))}" for t in table["first"]]
    place = f"under {table['place']!r}" if table["place"] else "at the root"
    return f"{table['tensors']} {place}: {_short(first)}"


def _stage_lines(stages: Mapping[str, Any]) -> list[str]:
    head = ("parameters", "conv mean", "conv std", "conv min", "conv max")
    lines = [f"{'stage':8s}" + "".join(f"{name:>12s}" for name in head) + f"{'norm variance':>24s}"]
    for stage, facts in stages.items():
        conv = facts["convolution"]
        numbers = "".join(f"{_figure(conv[name]):>12s}" for name in ("mean", "std", "min", "max"))
        least, largest = map(_figure, facts["norm_running_var"])
        lines.append(
            f"{stage:8s}{facts['parameters']:>12,}{numbers}{least + ' to ' + largest:>24s}"
        )
    return lines


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
