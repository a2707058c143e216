"""Every format, architecture and direction: tensors matched and the largest forward difference.

    python benchmarks/conversion_table.py ROWS.jsonl -o docs/conversions.md

The files are those of conversion_cases.py. Each is converted with its proof, then back to formats
that can hold it; every number that came back is compared bit by bit with the source's. A failure
ends the script: there is no row without its proof. Rows that ROWS.jsonl has already are not made
again, so that the script can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from conversion_cases import Case, all_cases
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import ResNet
from moco_det.weights.architectures import STAGES, backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.formats import FORMATS
from moco_det.weights.proof import source_features
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint
from moco_det_tools.entry import run

INTRODUCTION = """# Conversions

Made by `python benchmarks/conversion_table.py ROWS.jsonl -o docs/conversions.md` with torch
{torch}; not written by hand. `list NAME` is a file built from `tests/weights/golden/NAME.txt`.
Every number is seeded noise, in the true checkpoints too.

A cell says how many backbone tensors were filled of those that the target has, and the largest
absolute difference, over all stages, between the features of the source's network in torchvision's
names and of the converted one in detectron2's. A 0 is exact: both make the same float32 operations
in the same order. `in detectron2` is the same difference for the file opened by detectron2's own
checkpointer in its own ResNet, `standalone` for the standalone engine's, which folds its frozen
norms into the convolutions and so sums in another order.

Numbers that came back were compared with the source's bit by bit, and a `.pkl` made again from a
`.safetensors` has the bytes of the first. What a `.pkl` becomes depends on its architecture alone,
so not every row is taken on; BGR networks become nothing but detectron2's files.
"""
BACK = ("torchvision .pth", "timm .safetensors", "detectron2 .safetensors")
HEAD = (
    *("format", "made by", "architecture", "encoder"),
    *("to detectron2 .pkl", "in detectron2", "standalone"),
    *(f"on to {target}" for target in BACK),
)
CONSTRUCTED = ("list ", "names of ")  # how the makers of such cases begin
SECTIONS = {
    "True checkpoints: written by the installed library": False,
    "Constructed checkpoints: keys and shapes as the project's source writes them": True,
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    format: str
    maker: str
    architecture: str
    encoder: str
    cells: tuple[str, ...]


def rows_of(case: Case, folder: Path) -> Iterator[Row]:
    """A row for each encoder of the file."""
    path = folder / f"checkpoint{case.suffix}"
    case.write(path)
    encoders = read_checkpoint(path, source_format=case.source_format).encoders
    for encoder in encoders:
        named = encoder if len(encoders) > 1 else None
        pkl = folder / "backbone.pkl"
        conversion = convert(
            path, pkl, source_format=case.source_format, encoder=named, overwrite=True
        )
        source = conversion.source
        if source.architecture != case.architecture:
            raise InputError(f"{case.maker}: {source.architecture}, not {case.architecture}")
        arrays = {name: source.array(name) for name in source.tensors}
        stated = source.input
        assert stated is not None
        plain = stated["format"] == "RGB" and not stated["stride_in_1x1"]
        cells = [cell(conversion.tensors, conversion.max_abs_difference)]
        cells += [in_detectron2(pkl, arrays, source), in_standalone(pkl, arrays, source)]
        for target in BACK:
            wanted = target in case.back and (plain or "detectron2" in target)
            cells.append(back(pkl, target, arrays) if wanted else "")
        default = " (default)" if named and encoder == encoders[0] else ""
        yield Row(source.format, case.maker, source.architecture, encoder + default, tuple(cells))


def back(pkl: Path, target: str, arrays: dict[str, np.ndarray]) -> str:
    """Convert onwards; compare every number with the source's."""
    kind, suffix = target.split()
    output = pkl.with_name(f"back{suffix}")
    conversion = convert(pkl, output, target_format=kind, overwrite=True)
    again = read_checkpoint(output)
    for name, array in arrays.items():
        if not np.array_equal(again.array(name), array):
            raise InputError(f"{name} came back from {target} with other numbers")
    once_more = pkl.with_name("again.pkl")
    if kind == "detectron2":
        digest = convert(output, once_more, overwrite=True).sha256
        if digest != read_checkpoint(pkl).sha256:
            raise InputError(f"the .pkl made from {target} is another one")
    return cell(conversion.tensors, conversion.max_abs_difference)


def in_detectron2(pkl: Path, arrays: dict[str, np.ndarray], source: SourceCheckpoint) -> str:
    """The file opened by detectron2's own checkpointer, in its own ResNet with its frozen norm."""
    if importlib.util.find_spec("detectron2") is None:
        return "-"
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    from moco_det.plugin.modeling import any_width

    assert source.input is not None
    in_1x1 = bool(source.input["stride_in_1x1"])
    cfg = get_cfg()
    keys = ARCHITECTURES[source.architecture].keys
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = in_1x1
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    network = build_backbone(any_width(cfg)).eval()
    left = DetectionCheckpointer(network)._load_model(
        DetectionCheckpointer(network)._load_file(str(pkl))
    )
    if left.missing_keys or left.unexpected_keys:
        raise InputError(f"{source.format}: detectron2 leaves {left.missing_keys[:3]}")
    return largest(network, arrays, source, in_1x1=in_1x1)


def in_standalone(pkl: Path, arrays: dict[str, np.ndarray], source: SourceCheckpoint) -> str:
    """The file in moco_det.resnet with frozen norms, as the standalone engine runs it."""
    assert source.input is not None
    in_1x1 = bool(source.input["stride_in_1x1"])
    network = ResNet(
        ARCHITECTURES[source.architecture], norm="FrozenBN", stride_in_1x1=in_1x1
    ).eval()
    model = {name: torch.from_numpy(array) for name, array in load_backbone(pkl).model.items()}
    network.load_state_dict(model, strict=True)
    return largest(network, arrays, source, in_1x1=in_1x1)


def largest(
    network: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    arrays: dict[str, np.ndarray],
    source: SourceCheckpoint,
    *,
    in_1x1: bool,
) -> str:
    """The largest difference of any stage's features from the source's."""
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    shape = ARCHITECTURES[source.architecture]
    expected = source_features(arrays, shape, images, stride_in_1x1=in_1x1)
    found = network(images)
    return figure(max(float((found[s] - expected[s]).abs().max()) for s in STAGES))


def figure(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def cell(tensors: int, difference: float) -> str:
    return f"{tensors} of {tensors}, {figure(difference)}"


def markdown(rows: Sequence[Row]) -> str:
    """The document."""
    lines = [
        *INTRODUCTION.format(torch=importlib.metadata.version("torch").partition("+")[0]).split(
            "\n"
        ),
    ]
    for heading, constructed in SECTIONS.items():
        lines += [f"## {heading}", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        for row in rows:
            if row.maker.startswith(CONSTRUCTED) == constructed:
                words = (row.format, row.maker, row.architecture, row.encoder, *row.cells)
                lines.append("| " + " | ".join(words) + " |")
        lines.append("")
    missing = sorted({f.name for f in FORMATS} - {row.format for row in rows})
    lines += [f"{len(rows)} rows" + (f"; no row for {', '.join(missing)}." if missing else ".")]
    return "\n".join(lines) + "\n"


def parameters(case: Case) -> int:
    """The size of its backbone: small ones first."""
    tensors = backbone_tensors(ARCHITECTURES[case.architecture])
    return sum(int(np.prod(tensor.shape)) for tensor in tensors)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("rows", type=Path, help="where finished rows are kept")
    parse.add_argument("-o", "--output", type=Path, help="the document; without it, print it")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; returns 0."""
    options = parser().parse_args(argv)
    done: dict[str, list[Row]] = {}
    if options.rows.exists():
        for line in options.rows.read_text(encoding="utf-8").splitlines():
            name, rows = json.loads(line)
            done[name] = [Row(**{**row, "cells": tuple(row["cells"])}) for row in rows]
    cases = {f"{case.maker} {case.architecture} {case.source_format}": case for case in all_cases()}
    for name in tqdm(sorted(cases, key=lambda name: parameters(cases[name])), unit="file"):
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            done[name] = list(rows_of(cases[name], Path(folder)))
        with open(options.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, [asdict(row) for row in done[name]]]) + "\n")
    text = markdown([row for name in cases for row in done[name]])
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
