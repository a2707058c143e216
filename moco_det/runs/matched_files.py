"""The proof of matched arms for yaml files, resolved as an engine resolves them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moco_det.foundation.errors import InputError
from moco_det.results.matched import Matched, compare_configs
from moco_det.runs.engines import load_config
from moco_det.settings.config import dump
from moco_det.weights.backbone import load_backbone

WHOLE_DETECTORS = (".pth", ".pt")


def match_files(
    files: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    engine: str,
    read_weights: bool = True,
) -> Matched:
    """Whether the arms that these files describe differ in their initialisation alone.

    `overrides` (KEY VALUE ...) go over every file. Without `read_weights` no weights are opened
    and none can demand an input of its own. Raises InputError for a file that an engine refuses,
    and for weights that are not there.
    """
    if len(files) > len({Path(file).resolve() for file in files}) == 1:
        raise InputError(f"{files[0]} is named twice: name another config beside it")
    arms = {label: load_config(engine, file, overrides) for label, file in labelled(files).items()}
    inputs = {
        label: input_of(cfg.MODEL.WEIGHTS) if read_weights else None for label, cfg in arms.items()
    }
    return compare_configs({label: dump(cfg) for label, cfg in arms.items()}, inputs)


def labelled(files: Sequence[str | Path]) -> dict[str, Path]:
    """Files by what of their names is their own: "moco" beside "random" of one stem.

    Two files of one name in different folders go by their paths.
    """
    paths = list(dict.fromkeys(Path(file) for file in files))
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        return {str(path.with_suffix("")): path for path in paths}
    shared = os.path.commonprefix(names) if len(names) > 1 else ""
    cut = shared.rfind("_") + 1
    return dict(zip((name[cut:] for name in names), paths, strict=True))


def input_of(weights: str) -> Mapping[str, Any] | None:
    """What a weights file says of its own input; None where it says nothing or there is none."""
    if not weights or Path(weights).suffix in WHOLE_DETECTORS:
        return None
    try:
        return load_backbone(weights).input
    except InputError as error:
        raise InputError(f"{error}; --without-weights compares the files alone") from None
