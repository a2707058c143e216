"""Two arms are matched if they differ in their initialisation and in nothing else."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results.matched import (
    INPUT_KEYS,
    check_input,
    compare_configs,
    flatten_config,
    frozen_over_random,
)

BASE = """\
INPUT: {{FORMAT: {format}}}
MODEL:
  PIXEL_MEAN: {mean}
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS: {{STRIDE_IN_1X1: {stride}}}
  WEIGHTS: "{weights}"
OUTPUT_DIR: {out}
SEED: {seed}
SOLVER: {{BASE_LR: {lr}}}
"""
RGB = {
    "format": "RGB",
    "mean": [0.485 * 255, 0.456 * 255, 0.406 * 255],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}
BGR = {**RGB, "format": "BGR", "mean": [103.53, 116.28, 123.675], "stride_in_1x1": True}


def config(
    weights: str,
    *,
    format: str = "RGB",
    mean: str = "[123.675, 116.28, 103.53]",
    stride: str = "false",
    lr: float = 0.02,
    seed: int = 0,
) -> str:
    return BASE.format(
        weights=weights, format=format, mean=mean, stride=stride, lr=lr, seed=seed, out=weights
    )


def bgr_config() -> str:
    return config("msra.pkl", format="BGR", mean="[103.53, 116.28, 123.675]", stride="true")


def test_arms_that_differ_only_in_weights_seed_and_folder_are_matched() -> None:
    matched = compare_configs(
        {"random": config(""), "moco": config("moco.pkl", seed=3)}, {"random": None, "moco": RGB}
    )
    assert matched.ok
    assert [d.key for d in matched.allowed] == ["MODEL.WEIGHTS"]
    assert matched.allowed[0].values == {"random": "(none)", "moco": "moco.pkl"}
    assert matched.keys_compared == 6


def test_arms_on_different_devices_are_matched() -> None:
    on = {
        "a": config("a.pkl") + "MODEL.DEVICE: cpu\n",
        "b": config("b.pkl") + "MODEL.DEVICE: cuda\n",
    }
    assert compare_configs(on, {"a": RGB, "b": RGB}).ok


def test_a_different_learning_rate_is_forbidden_and_named_with_its_values() -> None:
    matched = compare_configs(
        {"a": config("a.pkl"), "b": config("b.pkl", lr=0.04)}, {"a": RGB, "b": RGB}
    )
    assert not matched.ok
    assert [d.key for d in matched.forbidden] == ["SOLVER.BASE_LR"]
    assert dict(matched.forbidden[0].values) == {"a": "0.02", "b": "0.04"}
    assert "SOLVER.BASE_LR: a=0.02, b=0.04" in "\n".join(matched.lines())


def test_input_keys_may_differ_where_the_weights_demand_it() -> None:
    matched = compare_configs(
        {"random": config(""), "moco": config("m.pkl"), "msra": bgr_config()},
        {"random": None, "moco": RGB, "msra": BGR},
    )
    assert matched.ok
    assert {d.key for d in matched.allowed} == {
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
        "MODEL.RESNETS.STRIDE_IN_1X1",
        "MODEL.WEIGHTS",
    }


def test_input_keys_may_not_differ_where_no_weights_demand_it() -> None:
    matched = compare_configs({"a": config("a.pkl"), "msra": bgr_config()}, {"a": None})
    assert {d.key for d in matched.forbidden} == {
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
        "MODEL.RESNETS.STRIDE_IN_1X1",
    }


def test_a_config_that_contradicts_its_weights_is_forbidden_even_if_all_arms_agree() -> None:
    matched = compare_configs(
        {"moco": config("m.pkl"), "msra": config("msra.pkl")}, {"moco": RGB, "msra": BGR}
    )
    assert not matched.ok
    assert "INPUT.FORMAT" in {d.key for d in matched.forbidden}
    assert "msra's weights demand BGR" in str(matched.forbidden[0])


def test_a_demanded_key_that_no_config_has_is_forbidden() -> None:
    matched = compare_configs({"moco": "MODEL: {WEIGHTS: m.pkl}"}, {"moco": {"format": "RGB"}})
    assert [str(d.values["moco"]) for d in matched.forbidden] == ["(absent)"]


def test_a_key_that_one_arm_lacks_is_forbidden() -> None:
    matched = compare_configs({"a": "X: 1\nY: 2", "b": "X: 1"}, {})
    assert [d.key for d in matched.forbidden] == ["Y"]
    assert matched.forbidden[0].values["b"] == "(absent)"


def test_true_is_not_one() -> None:
    assert not compare_configs({"a": "X: true", "b": "X: 1"}, {}).ok
    assert compare_configs({"a": "X: 1.0", "b": "X: 1"}, {}).ok


def test_lists_are_compared_by_value() -> None:
    assert compare_configs({"a": "X: [1, 2]", "b": "X: [1.0, 2]"}, {}).ok
    assert not compare_configs({"a": "X: [1, 2]", "b": "X: [1, 2, 3]"}, {}).ok


def test_one_arm_is_matched_with_itself() -> None:
    assert compare_configs({"moco": config("m.pkl")}, {"moco": RGB}).ok


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A: 1\nA: 2", "duplicate yaml key 'A' in line 2"),
        ("A: {B: 1, B: 1}", "duplicate yaml key 'B'"),
        ("A: [", "not valid yaml"),
        ("- 1", "not a list"),
        ("A: !!python/object:os.system {}", "not valid yaml"),
    ],
)
def test_a_text_that_is_no_config_is_an_input_error_that_names_the_arm(
    text: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        compare_configs({"moco": text}, {})
    assert said in str(caught.value)
    assert "moco" in str(caught.value)


FED = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": (58.395, 57.12, 57.375),
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def test_a_config_that_agrees_with_its_weights_passes() -> None:
    check_input(FED, RGB, "moco.pkl")
    check_input({**FED, "MODEL.PIXEL_MEAN": [123.6751, 116.28, 103.53]}, RGB, "moco.pkl")
    # weights that say nothing forbid nothing
    check_input({**FED, "INPUT.FORMAT": "BGR"}, None, "moco.pkl")
    check_input({**FED, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}, {"format": "RGB"}, "moco.pkl")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("MODEL.RESNETS.STRIDE_IN_1X1", True),
    ],
)
def test_a_contradiction_names_key_value_and_weights(key: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        check_input({**FED, key: value}, RGB, "moco.pkl")
    shown = {"format": "RGB", "mean": "[123.675, 116.28, 103.53]", "stride_in_1x1": "False"}
    demanded = shown.get(INPUT_KEYS[key], "[58.395, 57.12, 57.375]")
    assert str(caught.value).startswith(f"{key} is ")
    assert f", but moco.pkl was trained with {key} '{demanded}': set that" in str(caught.value)


def test_all_contradictions_are_told_at_once_in_the_form_of_a_command_line() -> None:
    """Weights of another source differ in several keys: none must be found one run later."""
    caffe = {"format": "BGR", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]}
    with pytest.raises(InputError) as caught:
        check_input(FED, {**caffe, "stride_in_1x1": False}, "msra.pkl")
    text = str(caught.value)
    assert "INPUT.FORMAT is RGB" in text and "MODEL.PIXEL_STD is [58.395, 57.12, 57.375]" in text
    assert "STRIDE_IN_1X1" not in text
    options = shlex.split(text.split("was trained with ")[1].split(": set")[0])
    assert dict(zip(options[0::2], options[1::2], strict=True)) == {
        "MODEL.PIXEL_MEAN": "[103.53, 116.28, 123.675]",
        "MODEL.PIXEL_STD": "[1, 1, 1]",
        "INPUT.FORMAT": "BGR",
    }


def test_pixel_statistics_that_round_alike_fit_both_arms() -> None:
    rounded = config("b.pkl", mean="[123.68, 116.28, 103.53]")
    matched = compare_configs({"a": config("a.pkl"), "b": rounded}, {"a": RGB, "b": RGB})
    assert matched.ok
    assert "MODEL.PIXEL_MEAN" in {d.key for d in matched.allowed}


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ("BACKBONE: {FREEZE_AT: 2}", "MODEL.BACKBONE.FREEZE_AT"),
        ("RESNETS: {NORM: FrozenBN}", "MODEL.RESNETS.NORM"),
        ("BACKBONE: {FREEZE_AT: 0}, RESNETS: {NORM: BN}", None),
    ],
)
def test_what_is_frozen_over_random_weights_is_forbidden_even_if_all_arms_agree(
    keys: str, wrong: str | None
) -> None:
    arms = {"random": f'MODEL: {{WEIGHTS: "", {keys}}}', "moco": f"MODEL: {{WEIGHTS: m, {keys}}}"}
    matched = compare_configs(arms, {})
    assert [d.key for d in matched.forbidden] == ([wrong] if wrong else [])
    assert frozen_over_random(flatten_config(arms["moco"])) is None


def test_configs_flatten_to_dotted_keys() -> None:
    assert flatten_config("A: {B: {C: 1}, D: {}}\nE: [1]") == {"A.B.C": 1, "A.D": {}, "E": [1]}
