"""The yaml files mean on detectron2 what they mean on the standalone engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.settings import config as standalone

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from moco_det.plugin import config as plugin  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
QUICK = sorted((REPO / "configs" / "quick").glob("*.yaml"))
CONFIG = REPO / "configs" / "quick" / "R18_FPN.yaml"

Overrides = Callable[..., list[str]]


def plain(value: object) -> object:
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_the_standalone_defaults_are_detectron2s() -> None:
    cfg = plugin.get_cfg()
    plugin.add_moco_det_config(cfg)
    plugin.add_moco_det_config(cfg)  # twice is harmless
    theirs = standalone.flatten(cfg)
    ours = standalone.flatten(standalone.get_cfg())
    assert len(ours) > 100
    assert {k: plain(v) for k, v in ours.items()} == {k: plain(theirs[k]) for k in ours}


def test_every_quick_config_resolves_to_the_same_values_on_both_engines(tiny: Overrides) -> None:
    assert len(QUICK) >= 2
    for path in QUICK:
        ours = standalone.flatten(standalone.load_config(path, tiny()))
        theirs = standalone.flatten(plugin.load_config(path, tiny()))
        assert {k: plain(v) for k, v in ours.items()} == {k: plain(theirs[k]) for k in ours}, path


def test_the_config_is_frozen(tiny: Overrides) -> None:
    cfg = plugin.load_config(CONFIG, tiny())
    with pytest.raises(AttributeError):
        cfg.SEED = 7
    assert standalone.set_values(cfg, ["SEED", 7]).SEED == 7
    assert cfg.SEED == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {ROI_HEADS: {NUM_CLASES: 3}}", "MODEL.ROI_HEADS.NUM_CLASES"),
        ("MODEL: 3", "the key MODEL"),
        ("SEED: 1\nSEED: 2", "duplicate yaml key 'SEED'"),
        ("SOLVER: {MAX_ITER: many}", "MAX_ITER"),
        ("SOLVER: {MAX_ITER: 0}", "SOLVER.MAX_ITER is 0"),
        ("VERSION: 1", "VERSION is 1"),
        ("MODEL: {KEYPOINT_ON: True}", "MODEL.KEYPOINT_ON is True"),
        ("TEST: {AUG: {ENABLED: True}}", "TEST.AUG.ENABLED is True"),
        ("MODEL: {DEVICE: tpu}", "MODEL.DEVICE is 'tpu'"),
        ("DATASETS: {TEST: []}", "DATASETS.TEST"),
        ("MODEL: {BACKBONE: {FREEZE_AT: 2}}", "randomly initialised"),
        ("SOLVER: {REFERENCE_WORLD_SIZE: 3}", "REFERENCE_WORLD_SIZE 3"),
        ("SOLVER: {STEPS: [9, 5], MAX_ITER: 10}", "SOLVER.STEPS is (9, 5)"),
        ("SOLVER: {LR_SCHEDULER_NAME: Constant}", "LR_SCHEDULER_NAME Constant"),
        ("DATALOADER: {SAMPLER_TRAIN: Mine}", "DATALOADER.SAMPLER_TRAIN is 'Mine'"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml does not exist"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_key(
    text: str, message: str, tmp_path: Path, tiny: Overrides
) -> None:
    child = tmp_path / "child.yaml"
    base = "" if "_BASE_" in text else f"_BASE_: {CONFIG}\n"
    child.write_text(f"{base}{text}\n")
    key = text.split(":")[0]
    keep = [k for k in tiny()[0::2] if not k.startswith((key, "MODEL.DEVICE"))]
    values = dict(zip(tiny()[0::2], tiny()[1::2], strict=True))
    device = [] if "DEVICE" in text else ["MODEL.DEVICE", "cpu"]
    options = [part for k in keep for part in (k, values[k])] + device
    with pytest.raises(InputError) as caught:
        plugin.load_config(child, options)
    assert message in str(caught.value)


def test_a_step_at_the_end_of_the_schedule_has_no_effect_and_is_no_fault(tiny: Overrides) -> None:
    cfg = plugin.load_config(CONFIG, tiny(SOLVER__STEPS="(2, 4, 7)", SOLVER__MAX_ITER="4"))
    assert cfg.SOLVER.STEPS == (2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.LR", "1"], "unknown key SOLVER.LR"),
        (["SEED"], "KEY VALUE pairs"),
        (["SEED", "'one'"], "on the command line"),
    ],
)
def test_a_bad_override_is_one_line(options: list[str], message: str, tiny: Overrides) -> None:
    with pytest.raises(InputError, match=message):
        plugin.load_config(CONFIG, [*tiny(), *options])
