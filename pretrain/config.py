"""The pre-training config: defaults, yaml files with `_BASE_`, KEY VALUE overrides, checks.

Nothing is ignored: an unknown or repeated key, a value of the wrong type and an impossible
combination are errors that name the key.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.errors import InputError

BASE_KEY = "_BASE_"


def get_cfg() -> CfgNode:
    """The defaults: MoCo v1 on ResNet-50 as the paper trains it, without data."""
    cfg = CfgNode()
    cfg.METHOD = "moco"  # moco | supervised
    cfg.OUTPUT_DIR = "runs/pretrain"
    cfg.SEED = 0
    cfg.DEVICE = "auto"  # auto | cpu | cuda
    cfg.PRECISION = "auto"  # auto | float32 | bfloat16

    cfg.ENCODER = CfgNode()
    cfg.ENCODER.ARCH = "resnet50"
    # Batch norm over this many sub-batches of a step; 1 is plain batch norm.
    cfg.ENCODER.BN_SPLITS = 1

    cfg.MOCO = CfgNode()
    cfg.MOCO.HEAD = "fc"  # fc (v1) | mlp (v2)
    cfg.MOCO.DIM = 128
    cfg.MOCO.K = 65536
    cfg.MOCO.M = 0.999
    cfg.MOCO.T = 0.07
    # Shuffle the keys across the sub-batches of batch norm.
    cfg.MOCO.SHUFFLE = True

    cfg.DATA = CfgNode()
    # A folder of images, with or without one sub-folder a class, or a text file with one image
    # path a line (relative to the file), path<TAB>class where there are labels.
    cfg.DATA.PATH = ""
    # Images are shrunk to this shorter side right after decoding; 0 keeps them as they are.
    cfg.DATA.SHORTER_SIDE = 0
    # Decoded images are kept in memory where the whole set fits in this; 0 never.
    cfg.DATA.CACHE_MB = 512
    cfg.DATA.WORKERS = 2
    # Share of images that may fail to open before the run stops; STRICT stops at the first one.
    cfg.DATA.MAX_CORRUPT = 0.01
    cfg.DATA.STRICT = False

    cfg.AUGMENT = CfgNode()
    cfg.AUGMENT.RECIPE = "moco_v1"  # moco_v1 | moco_v2 | crop_flip
    cfg.AUGMENT.SIZE = 224
    cfg.AUGMENT.MIN_SCALE = 0.2

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.BATCH = 256
    cfg.SOLVER.LR = 0.03
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # The budget: exactly one of the two is above 0.
    cfg.SOLVER.EPOCHS = 0
    cfg.SOLVER.MAX_ITER = 0
    cfg.SOLVER.SCHEDULE = "cosine"  # cosine | step
    # For step: where the rate is multiplied by GAMMA, in epochs or iterations as the budget is.
    cfg.SOLVER.MILESTONES = []
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.LR_UPDATE = "iteration"  # iteration | epoch: how often the rate changes

    cfg.LOG_EVERY = 10
    cfg.CHECKPOINT_EVERY = 500
    return cfg


CHOICES: dict[str, tuple[str, ...]] = {
    "METHOD": ("moco", "supervised"),
    "DEVICE": ("auto", "cpu", "cuda"),
    "PRECISION": ("auto", "float32", "bfloat16"),
    "ENCODER.ARCH": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "MOCO.HEAD": ("fc", "mlp"),
    "AUGMENT.RECIPE": ("moco_v1", "moco_v2", "crop_flip"),
    "SOLVER.SCHEDULE": ("cosine", "step"),
    "SOLVER.LR_UPDATE": ("iteration", "epoch"),
}

# Lowest and highest allowed value, inclusive.
INF = float("inf")
RANGES: dict[str, tuple[float, float]] = {
    "SEED": (0, 2**63 - 1),
    "ENCODER.BN_SPLITS": (1, INF),
    "MOCO.DIM": (1, INF),
    "MOCO.K": (1, INF),
    "MOCO.M": (0, 1),
    "MOCO.T": (1e-6, INF),
    "DATA.SHORTER_SIDE": (0, INF),
    "DATA.CACHE_MB": (0, INF),
    "DATA.WORKERS": (0, INF),
    "DATA.MAX_CORRUPT": (0, 1),
    "AUGMENT.SIZE": (32, INF),
    "AUGMENT.MIN_SCALE": (1e-3, 1),
    "SOLVER.BATCH": (2, INF),
    "SOLVER.LR": (0, INF),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, INF),
    "SOLVER.EPOCHS": (0, INF),
    "SOLVER.MAX_ITER": (0, INF),
    "SOLVER.GAMMA": (0, 1),
    "LOG_EVERY": (1, INF),
    "CHECKPOINT_EVERY": (1, INF),
}


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, then the yaml file, then KEY VALUE pairs; checked and frozen."""
    cfg = get_cfg()
    if path is not None:
        for key, value in _flat(_read_yaml(Path(path), ())):
            _set(cfg, key, value, str(path))
    if len(overrides) % 2:
        raise InputError(f"overrides come as KEY VALUE pairs: {overrides[-1]!r} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _set(cfg, key, _parse(text), "the command line", text=text)
    check(cfg)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode) -> None:
    """Raise InputError for a value out of range or a combination that can't work."""
    for key, choices in CHOICES.items():
        value = lookup(cfg, key)
        if value not in choices:
            raise InputError(f"{key} is {value!r}: choose one of {', '.join(choices)}")
    for key, (low, high) in RANGES.items():
        value = lookup(cfg, key)
        if not low <= value <= high:
            limit = f"from {low:g} to {high:g}" if high < INF else f"at least {low:g}"
            raise InputError(f"{key} is {value}: it must be {limit}")
    solver = cfg.SOLVER
    if (solver.EPOCHS > 0) == (solver.MAX_ITER > 0):
        raise InputError(
            f"SOLVER.EPOCHS is {solver.EPOCHS} and SOLVER.MAX_ITER is {solver.MAX_ITER}: give the "
            "budget by one of the two and set the other to 0"
        )
    if (solver.SCHEDULE == "step") != bool(solver.MILESTONES):
        raise InputError(
            f"SOLVER.SCHEDULE is {solver.SCHEDULE} with SOLVER.MILESTONES {solver.MILESTONES}: "
            "milestones belong to the step schedule, and it needs them"
        )
    if solver.BATCH < 2 * cfg.ENCODER.BN_SPLITS:
        raise InputError(
            f"SOLVER.BATCH {solver.BATCH} in ENCODER.BN_SPLITS {cfg.ENCODER.BN_SPLITS} sub-batches "
            "leaves batch norm fewer than 2 images: raise the one or lower the other"
        )


def lookup(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def plain(cfg: CfgNode) -> dict[str, Any]:
    """The config as plain nested dicts."""
    return {k: plain(v) if isinstance(v, CfgNode) else v for k, v in cfg.items()}


def flat_keys(cfg: CfgNode) -> dict[str, Any]:
    """The config as one dict with dotted keys."""
    return dict(_flat(plain(cfg)))


class _StrictLoader(yaml.SafeLoader):
    """yaml's safe loader, but a key given twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"{self.name}, line {line}: the key {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in parents:
        raise InputError(f"config {path} is its own {BASE_KEY}")
    try:
        with open(path, encoding="utf-8") as file:
            loaded = yaml.load(file, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not yaml: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"config {path} must be a mapping of keys, not {type(loaded).__name__}")
    base = loaded.pop(BASE_KEY, None)
    if base is None:
        return loaded
    below = _read_yaml(path.parent / str(base), (*parents, path.resolve()))
    return _over(below, loaded)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _set(cfg: CfgNode, key: str, value: Any, where: str, *, text: str | None = None) -> None:
    """Set a dotted key; `text` is what was typed, kept as it is for string keys."""
    *parents, last = key.split(".")
    node: Any = cfg
    for part in parents:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or last not in node or isinstance(node[last], CfgNode):
        near = difflib.get_close_matches(key, list(flat_keys(cfg)), n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown key {key} in {where}{hint}")
    node[last] = _coerce(key, value, node[last], text, where)


def _coerce(key: str, value: Any, default: Any, text: str | None, where: str) -> Any:
    if isinstance(default, str):
        value = text if text is not None else value
    elif isinstance(default, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # yaml reads 1e-3 as a string
    elif isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        raise InputError(
            f"{key} in {where} is {value!r}: it must be {type(default).__name__}, like {default!r}"
        )
    return value
