"""The matrix of configs: what is on disk, what it says, and that it builds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten
from moco_det.results.matched import INPUT_KEYS, WEIGHTS_KEY, compare_configs, flatten_config
from moco_det.results.published import PublishedTable, published_tables
from moco_det.settings.config import dump, load_config, load_yaml
from moco_det.settings.zoo.arms import ARMS
from moco_det.settings.zoo.matrix import files, published_row, write
from moco_det.settings.zoo.stems import STEMS
from moco_det.standalone import build_detector
from moco_det.weights.formats import BGR_MSRA, RGB_IMAGENET
from moco_det.weights.loading import backbone_names, new_layers
from moco_det_tools.entry import run
from moco_det_tools.make_configs import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SWIN_AND_CONVNEXT = "coco_swin_tiny_FPN_1x coco_convnext_tiny_FPN_1x voc_convnext_tiny_FPN_24k"
TIMM = [*SWIN_AND_CONVNEXT.split(), "coco_vit_small_1x", "coco_vit_small_dinov3_1x"]
EVERY = sorted(CONFIGS.glob("*.yaml"))
LEAVES = [file for file in EVERY if not file.stem.startswith(tuple(TIMM))]
NINE = {"random", "sup", "sup_msra", "moco", "moco_ig1b", "mocov2"} | {
    *("instdisc", "membank", "endtoend")
}
BOTH_ENGINES = [
    "voc_R50_C4_24k",
    "voc_R50_DC5_24k",
    "voc07_R50_C4_9k",
    "coco_R50_FPN_1x",
    "coco_R50_FPN_2x",
    "coco_R50_FPN_6x",
    "coco_R50_C4_1x",
    "coco_R50_C4_2x",
    "coco_R50_C4_6x",
]
DETECTRON2_ALONE = ["coco_keypoint_R50_FPN_2x", "lvis_R50_FPN_2x", "cityscapes_R50_FPN_24k"]
VOC_0712 = ["voc_2007_trainval", "voc_2012_trainval"]
TO_480, TO_640 = list(range(480, 801, 32)), list(range(640, 801, 32))
# What the papers, their released code and detectron2's baselines say, written down once more:
# iterations, steps, classes, sizes, training data, masks.
SAID: dict[str, tuple[int, list[int], int, list[int], list[str], bool]] = {
    "voc_R50_C4_24k": (24000, [18000, 22000], 20, TO_480, VOC_0712, False),
    "voc_R50_DC5_24k": (24000, [18000, 22000], 20, TO_480, VOC_0712, False),
    "voc07_R50_C4_9k": (9000, [6750, 8250], 20, TO_480, ["voc_2007_trainval"], False),
    "coco_R50_FPN_1x": (90000, [60000, 80000], 80, TO_640, ["coco_2017_train"], True),
    "coco_R50_FPN_2x": (180000, [120000, 160000], 80, TO_640, ["coco_2017_train"], True),
    "coco_R50_FPN_6x": (540000, [480000, 520000], 80, TO_640, ["coco_2017_train"], True),
    "coco_R50_C4_1x": (90000, [60000, 80000], 80, TO_640, ["coco_2017_train"], True),
    "coco_R50_C4_2x": (180000, [120000, 160000], 80, TO_640, ["coco_2017_train"], True),
    "coco_R50_C4_6x": (540000, [480000, 520000], 80, TO_640, ["coco_2017_train"], True),
}
# Keys that decide which parameters a detector has; weights and input stay outside.
ARCHITECTURE = re.compile(
    r"MODEL\.(META|MASK_ON|KEYPOINT_ON|BACKBONE|RESNETS|FPN|DILATED|RPN|ANCHOR|ROI_)"
)


def leaf(stem: str, arm: str) -> Path:
    return CONFIGS / f"{stem}_{arm}.yaml"


def arms_of(stem: str) -> set[str]:
    """The arms of a stem of both engines: IG-1B only where the paper has a row of it."""
    return NINE - {"moco_ig1b"} if stem == "coco_R50_C4_6x" else NINE


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def input_of(arm: str) -> Mapping[str, Any] | None:
    """What the converter writes into the weights of an arm."""
    if arm == "random":
        return None
    return BGR_MSRA if arm == "sup_msra" else RGB_IMAGENET


def test_every_stem_has_all_its_arms_and_the_folder_nothing_else() -> None:
    names = {f"{stem}_{arm}" for stem in BOTH_ENGINES for arm in arms_of(stem)}
    few = ("random", "sup", "sup_msra", "moco", "moco_ig1b")
    names |= {f"{stem}_{arm}" for stem in DETECTRON2_ALONE for arm in few}
    assert len(LEAVES) == len(names) == 95
    assert {file.stem for file in LEAVES} == names
    more = zip(TIMM, ["sup,moby", "sup,dinov3", "sup,dinov3", "sup,dino", "dinov3"], strict=True)
    of_timm = {f"{stem}_{arm}" for stem, arms in more for arm in ["random", *arms.split(",")]}
    assert {file.stem for file in EVERY} == names | of_timm
    assert set(STEMS) == {*BOTH_ENGINES, *DETECTRON2_ALONE, *TIMM} and set(ARMS) == NINE


def test_the_files_are_what_the_matrix_makes() -> None:
    made = files()
    assert len(made) == len(EVERY)
    for name, text in made.items():
        assert (CONFIGS / name).read_text(encoding="utf-8") == text, (
            f"{name}: run moco-det make-configs configs"
        )


def test_the_file_under_a_tables_arms_opens_with_what_it_is_and_its_note() -> None:
    for name, stem in STEMS.items():
        lines = (CONFIGS / "base" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert lines[0] == f"# {stem.what}: what every arm shares."
        assert not stem.note or lines[1] == f"# Note: {stem.note}."


def test_a_leaf_says_only_its_weights_their_input_and_its_folder() -> None:
    for file in EVERY:
        said = set(flatten(yaml.safe_load(file.read_text(encoding="utf-8"))))
        wanted = {"_BASE_", WEIGHTS_KEY, "OUTPUT_DIR"}
        assert said == (wanted | set(INPUT_KEYS) if "sup_msra" in file.stem else wanted), file


@pytest.mark.parametrize("stem", BOTH_ENGINES)
def test_a_stem_has_the_papers_hyper_parameters(stem: str) -> None:
    iterations, steps, classes, sizes, train, masks = SAID[stem]
    cfg = load_config(leaf(stem, "moco"))
    assert (cfg.SOLVER.MAX_ITER, plain(cfg.SOLVER.STEPS)) == (iterations, steps)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)
    assert (100 if "voc" in stem else 1000) == cfg.SOLVER.WARMUP_ITERS
    assert classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES and cfg.MODEL.MASK_ON is masks
    assert plain(cfg.INPUT.MIN_SIZE_TRAIN) == sizes and cfg.INPUT.MIN_SIZE_TEST == 800
    assert plain(cfg.DATASETS.TRAIN) == train
    assert plain(cfg.DATASETS.TEST) == (["voc_2007_test"] if "voc" in stem else ["coco_2017_val"])
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and cfg.MODEL.RESNETS.NORM == "SyncBN"
    assert cfg.TEST.PRECISE_BN.ENABLED and cfg.MODEL.RESNETS.DEPTH == 50
    heads = {"C4": "Res5ROIHeadsExtraNorm", "DC5": "StandardROIHeads", "FPN": "StandardROIHeads"}
    assert heads[stem.split("_")[2]] == cfg.MODEL.ROI_HEADS.NAME


@pytest.mark.parametrize("stem", BOTH_ENGINES)
def test_the_arms_of_every_table_are_matched(stem: str) -> None:
    texts = {arm: dump(load_config(leaf(stem, arm))) for arm in sorted(arms_of(stem))}
    matched = compare_configs(texts, {arm: input_of(arm) for arm in texts})
    assert matched.ok, "\n".join(matched.lines())
    assert {d.key for d in matched.allowed} == {WEIGHTS_KEY, *INPUT_KEYS}
    weights = [flatten_config(text)[WEIGHTS_KEY] for text in texts.values()]
    assert len(set(weights)) == len(texts) >= 8


@pytest.mark.parametrize("stem", DETECTRON2_ALONE)
def test_the_standalone_engine_refuses_the_keys_of_other_tasks_by_name(stem: str) -> None:
    own = flatten(load_yaml(leaf(stem, "moco")))
    with pytest.raises(InputError) as caught:
        load_config(leaf(stem, "moco"))
    named = re.search(r"does not honour the key (\S+);", str(caught.value))
    assert named is not None and named[1] in own
    assert "--engine detectron2" in str(caught.value)


def test_the_input_of_the_arms_is_torchvisions_but_for_the_original_caffe_weights() -> None:
    for stem in BOTH_ENGINES:
        for arm in arms_of(stem):
            flat = flatten_config(dump(load_config(leaf(stem, arm))))
            wanted = BGR_MSRA if arm == "sup_msra" else RGB_IMAGENET
            assert {flat[key] == wanted[name] for key, name in INPUT_KEYS.items()} == {True}


def header(file: Path, word: str) -> str:
    lines = [
        x for x in file.read_text(encoding="utf-8").splitlines() if x.startswith(f"# {word}: ")
    ]
    assert len(lines) == 1, f"{file.name} has {len(lines)} lines of {word}"
    return lines[0]


def numbers_in(text: str) -> dict[str, float]:
    """{"box AP50": 59.6, ...} of a line that begins with "# Published:"."""
    found = {}
    for part in text.removeprefix("# Published: ").split(" (")[0].split(";"):
        ruler = next((r for r in ("box", "mask", "keypoint") if r in part), "")
        for key, value in re.findall(r"(AP\d*) (\d+\.\d+)", part):
            found[f"{ruler} {key}".strip()] = float(value)
    return found


def fits(table: PublishedTable, cfg: Mapping[str, Any]) -> bool:
    """Whether a config has the data, the detector and the schedule of a published table."""
    heads = {
        "build_resnet_backbone": "C4",
        "build_resnet_dilated_c5_backbone": "DC5",
        "build_resnet_fpn_backbone": "FPN",
    }
    mine = {
        "train": cfg["DATASETS.TRAIN"],
        "test": cfg["DATASETS.TEST"],
        "classes": cfg["MODEL.ROI_HEADS.NUM_CLASSES"],
        "head": heads[cfg["MODEL.BACKBONE.NAME"]],
        "depth": cfg["MODEL.RESNETS.DEPTH"],
        "iterations": cfg["SOLVER.MAX_ITER"],
        "batch": cfg["SOLVER.IMS_PER_BATCH"],
    }
    said = {key: value for key, value in table.setting.items() if key in mine}
    return {"train", "test"} <= said.keys() and all(mine[key] == said[key] for key in said)


def resolved(file: Path) -> dict[str, Any]:
    """The keys that decide comparability, with detectron2's default where no file says one."""
    tree = {"MODEL.RESNETS.DEPTH": 50, **flatten(load_yaml(file))}
    return {key: plain(value) for key, value in tree.items()}


@pytest.mark.parametrize("file", LEAVES, ids=lambda f: f.stem)
def test_a_header_number_is_a_published_row_of_this_setting_and_this_arm(file: Path) -> None:
    line = header(file, "Published")
    numbers = numbers_in(line)
    arm = next(a for a in sorted(NINE, key=len, reverse=True) if file.stem.endswith(f"_{a}"))
    methods = {
        "sup": "supervised",
        "sup_msra": "supervised",
        "moco": "moco_v1",
        "moco_ig1b": "moco_v1",
        "mocov2": "moco_v2",
        "instdisc": "inst_disc",
        "membank": "memory_bank",
        "endtoend": "end_to_end",
    }
    data = "instagram1b" if arm == "moco_ig1b" else "imagenet1k"
    rows = [
        (table, row)
        for table in published_tables().values()
        if fits(table, resolved(file)) and table.task not in ("linear", "knn", "finetune")
        for row in table.rows
        if row.method == methods.get(arm, arm) and row.pretrained_on in ("none", data)
        if arm not in ("sup", "sup_msra") or (row.key == "imagenet_torchvision") == (arm == "sup")
    ]
    if not numbers:
        assert "none published" in line and not rows
        return
    names = {"voc": "", "bbox": "box ", "segm": "mask ", "keypoints": "keypoint "}
    published = [
        {names[c.split(".")[0]] + c.split(".")[1]: v for c, v in row.values.items()}
        for table, row in rows
        if f"({table.citation}" in line
    ]
    assert numbers in published


def test_some_headers_have_numbers_and_the_best_known_are_right() -> None:
    with_numbers = [file for file in LEAVES if numbers_in(header(file, "Published"))]
    assert len(with_numbers) == 51  # 8 + 6 + 3 on VOC, 12 + 4 + 6 on COCO, 12 of detectron2 alone
    moco = numbers_in(header(leaf("voc_R50_C4_24k", "moco"), "Published"))
    assert moco == {"AP": 55.9, "AP50": 81.5, "AP75": 62.6}
    msra = numbers_in(header(leaf("coco_R50_FPN_2x", "sup_msra"), "Published"))
    assert (msra["box AP"], msra["mask AP"]) == (40.6, 36.8)
    billion = numbers_in(header(leaf("voc_R50_C4_24k", "moco_ig1b"), "Published"))
    assert billion == {"AP": 57.2, "AP50": 82.2, "AP75": 63.7}
    assert published_row(STEMS["coco_R50_C4_6x"], ARMS["moco"]) is None


def test_npid_of_openselfsup_is_a_memory_bank_and_no_arm_of_instance_discrimination() -> None:
    found = published_row(STEMS["coco_R50_C4_2x"], ARMS["membank"])
    assert found is not None and (found[0].id, found[1].key) == (
        "repro.openselfsup.coco_c4_2x",
        "npid",
    )
    assert found[1].label == "memory bank, K=65536, loss=InfoNCE, BN=SyncBN"
    assert not any(published_row(stem, ARMS["instdisc"]) for stem in STEMS.values())


@pytest.mark.parametrize("file", EVERY, ids=lambda f: f.stem)
def test_a_header_opens_with_what_number_cost_and_a_command_for_this_file(file: Path) -> None:
    what, published, cost, command, *_ = file.read_text(encoding="utf-8").splitlines()
    assert what.startswith("# ") and published == header(file, "Published")
    assert cost == header(file, "Cost") and command == header(file, "Command")
    assert f"--config-file {file.stem} " in command
    assert "estimated" in cost and "not run by this project" in cost
    assert "not estimated" not in cost or file.stem.startswith(tuple(TIMM))
    weights = flatten(load_yaml(file))[WEIGHTS_KEY]
    assert weights == "" or f" {weights}" in header(file, "Weights")


def test_the_page_on_configs_names_every_stem_and_arm() -> None:
    text = (CONFIGS.parent / "docs" / "configs.md").read_text(encoding="utf-8")
    for stem in STEMS:
        start, _, schedule = stem.rpartition("_")
        assert f"| `{stem}`" in text or (f"`{start}_1x`" in text and f"`_{schedule}`" in text)
    arms = {*ARMS, *(arm for stem in TIMM for arm in STEMS[stem].initial)}
    assert {arm for arm in arms if f"| `{arm}` |" in text} == NINE | {"dino", "dinov3", "moby"}


@pytest.fixture(scope="module")
def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the parameters of one detector for each distinct architecture."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for stem in BOTH_ENGINES:
        cfg = load_config(leaf(stem, "moco"))
        key = architecture(cfg)
        if key not in found:
            with torch.device("meta"):
                state = build_detector(cfg).state_dict()
            found[key] = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return found


def architecture(cfg: CfgNode) -> str:
    flat = {k: plain(v) for k, v in flatten(cfg).items() if ARCHITECTURE.match(k)}
    return repr({k: v for k, v in flat.items() if k not in ("MODEL.RESNETS.STRIDE_IN_1X1",)})


def test_every_config_describes_one_of_the_architectures_that_are_built(
    shapes: dict[str, dict[str, tuple[int, ...]]],
) -> None:
    counted = 0
    for stem in BOTH_ENGINES:
        for arm in arms_of(stem):
            assert architecture(load_config(leaf(stem, arm))) in shapes
            counted += 1
    assert counted == 80
    assert len(shapes) == 4  # VOC on C4 and DC5, COCO on FPN and C4


def test_a_built_detector_loads_a_whole_resnet_and_names_its_new_layers() -> None:
    for stem, layers in {"voc_R50_C4_24k": 6, "voc_R50_DC5_24k": 9, "coco_R50_FPN_1x": 29}.items():
        with torch.device("meta"):
            model = build_detector(load_config(leaf(stem, "moco")))
        assert len(backbone_names(model)) == 265
        assert len(new_layers(model)) == layers, new_layers(model)


@pytest.mark.detectron2
def test_every_config_builds_on_detectron2_with_the_same_parameters(
    shapes: dict[str, dict[str, tuple[int, ...]]],
) -> None:
    pytest.importorskip("detectron2")
    from moco_det.plugin.config import load_config as load_detectron2_config
    from moco_det.plugin.trainer import build_detector as build_on_detectron2

    built: dict[str, dict[str, tuple[int, ...]]] = {}
    for stem in BOTH_ENGINES:
        for arm in sorted(arms_of(stem)):
            ours = load_config(leaf(stem, arm))
            theirs = load_detectron2_config(leaf(stem, arm), ["MODEL.DEVICE", "cpu"])
            flat = flatten(theirs)
            mine = {k: v for k, v in flatten(ours).items() if k != "MODEL.DEVICE"}
            assert {k: plain(v) for k, v in mine.items()} == {k: plain(flat[k]) for k in mine}
            key = architecture(ours)
            if key not in built:
                state = build_on_detectron2(theirs).state_dict()
                built[key] = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert built.keys() == shapes.keys()
    for key, theirs_of in built.items():
        ours_of = shapes[key]
        counters = {n for n in theirs_of if n.endswith("num_batches_tracked")}
        assert {n: s for n, s in ours_of.items() if not n.endswith("num_batches_tracked")} == {
            n: s for n, s in theirs_of.items() if n not in counters
        }


@pytest.mark.detectron2
@pytest.mark.parametrize("stem", DETECTRON2_ALONE)
def test_the_configs_of_other_tasks_build_on_detectron2_and_their_arms_are_matched(
    stem: str,
) -> None:
    pytest.importorskip("detectron2")
    from moco_det.plugin.config import load_config as load_detectron2_config
    from moco_det.plugin.trainer import build_detector as build_on_detectron2

    arms = {
        arm: load_detectron2_config(leaf(stem, arm), ["MODEL.DEVICE", "cpu"])
        for arm in STEMS[stem].initial
    }
    assert len(arms) == 5
    matched = compare_configs(
        {arm: dump(cfg) for arm, cfg in arms.items()}, {arm: input_of(arm) for arm in arms}
    )
    assert matched.ok, "\n".join(matched.lines())
    model = build_on_detectron2(arms["moco"])
    assert len(backbone_names(model)) == 265
    heads = {"coco_keypoint": "keypoint_head", "lvis": "mask_head", "cityscapes": "mask_head"}
    head = heads[stem.split("_R50")[0]]
    assert any(head in layer for layer in new_layers(model))


def test_the_tool_writes_a_folder_that_resolves_on_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: main([str(tmp_path / "mine")])) == 0
    assert "130 file(s) written" in capsys.readouterr().out  # the four detectors among them
    there = leaf("coco_R50_C4_2x", "moco")
    here = tmp_path / "mine" / there.name
    assert dump(load_config(here)) == dump(load_config(there))
    assert write(tmp_path / "mine") == []
    here.write_text("changed")
    assert write(tmp_path / "mine") == [here]
    (tmp_path / "file").touch()
    assert run(lambda: main([str(tmp_path / "file")])) == 2
    assert "error: cannot make the folder" in capsys.readouterr().err
