"""Anybody's checkpoint, a file or an address, as weights that a detector can start from."""

from __future__ import annotations

from pathlib import Path

from moco_det.weights.backbone import check_exists
from moco_det.weights.convert import convert
from moco_det.weights.download import local_path, network_of_address
from moco_det.weights.structure import file_stem
from moco_det.weights.summaries import conversion_lines
from moco_det.weights.timm_checkpoint import read_any


def ready_weights(name: str | Path) -> Path:
    """The file itself where it is a backbone or a detector, else its proven conversion.

    That is weights/STEM-SHA256.pkl, whose digits are the checkpoint's; the conversion is printed.
    """
    path = local_path(name)
    check_exists(path)
    arch = network_of_address(name)
    source = read_any(path, arch=arch)
    if source.is_backbone:
        return path
    source.known_input()
    output = Path("weights") / f"{file_stem(path)}-{source.sha256[:8]}.pkl"
    print("\n".join(conversion_lines(convert(path, output, arch=arch))))
    return output
