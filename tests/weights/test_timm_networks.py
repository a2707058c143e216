"""Checkpoints of timm's networks: which one it is, its tensors under timm's names, its pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("timm")

import timm
import torchvision

from moco_det.foundation.errors import InputError
from moco_det.timm_backbones import PLAIN_STAGES
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.inspection import inspect
from moco_det.weights.timm_checkpoint import TIMM_STAGES
from moco_det_tools.convert_weights import main
from tests.weights.timm_files import (
    FAMILIES,
    authors_convnext,
    authors_dinov3,
    authors_dinov3_vit,
    authors_swin,
    describe,
    save,
    trained,
)

# of DINOv3's biases, 64 wide: queries, keys, values
MASK = torch.tensor([1.0, float("nan"), 1.0]).repeat_interleave(64)


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    return trained("test_convnext")


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        convert(path, path.with_suffix(".out.pkl"), **options)
    line = str(caught.value)
    assert "\n" not in line and not path.with_suffix(".out.pkl").exists()
    return line


@pytest.mark.parametrize("name", FAMILIES)
def test_a_true_model_comes_through_bit_for_bit(name: str, tmp_path: Path) -> None:
    state = trained(name)
    file = save({"arch": name, "state_dict": state}, tmp_path / "last.pth.tar")
    done = convert(file, tmp_path / "b.pkl")
    backbone = load_backbone(tmp_path / "b.pkl")
    wanted = TimmBackbone(name).network.state_dict()
    floats = [key for key in wanted if not key.endswith("num_batches_tracked")]
    assert list(backbone.model) == floats and done.tensors == len(floats)
    assert all(np.array_equal(backbone.model[key], state[key].numpy()) for key in floats)
    assert backbone.architecture == name and done.max_abs_difference == 0
    assert backbone.verified == {
        "max_abs_difference": 0.0,
        "per_stage": dict.fromkeys(PLAIN_STAGES if "vit" in name else TIMM_STAGES, 0.0),
    }
    assert backbone.source is not None and backbone.source["sha256"] == done.source.sha256
    assert backbone.source["format"] == "timm-network" and backbone.source["arch"] == name
    cfg = timm.get_pretrained_cfg(name)
    assert backbone.input == {
        "format": "RGB",
        "mean": [round(255 * one, 6) for one in cfg.mean],
        "std": [round(255 * one, 6) for one in cfg.std],
        "interpolation": cfg.interpolation,
        "input_size": list(cfg.input_size),
    }


def test_a_backbone_goes_to_other_containers_and_back_byte_for_byte(tmp_path: Path) -> None:
    state = trained("test_efficientnet")
    file = save({"arch": "test_efficientnet", "state_dict": state}, tmp_path / "e.pth")
    names = TimmBackbone("test_efficientnet").network.state_dict().keys()
    for source, target in (
        (file, "b.pkl"),
        (tmp_path / "b.pkl", "b.safetensors"),
        (tmp_path / "b.safetensors", "again.pkl"),
        (tmp_path / "b.pkl", "b.pth"),
        (file, "counted.pth"),
    ):
        convert(source, tmp_path / target)
    assert (tmp_path / "again.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()
    one, other = (load_backbone(tmp_path / name) for name in ("b.pkl", "b.safetensors"))
    assert (one.input, one.source, one.verified) == (other.input, other.source, other.verified)
    for name, count in (("b.pth", 0), ("counted.pth", 40)):  # a backbone file has no counters
        plain = torch.load(tmp_path / name, weights_only=True)
        assert plain.keys() == names
        assert {int(t) for key, t in plain.items() if "tracked" in key} == {count}
        assert torch.equal(plain["conv_stem.weight"], state["conv_stem.weight"])


def test_the_authors_names_give_the_same_backbone(
    tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    swin, vit = trained("swin_micro"), trained("vit_micro_dinov3_qkvb")
    for name, state, theirs in (
        ("test_convnext", small, {"model": authors_convnext(small)}),
        ("test_convnext", small, authors_dinov3(small)),
        ("swin_micro", swin, {"model": authors_swin(swin)}),
        ("vit_micro_dinov3_qkvb", vit, authors_dinov3_vit(vit)),
    ):
        assert theirs.keys() != state.keys()
        done = convert(
            save(theirs, tmp_path / "a.pth"), tmp_path / "a.pkl", arch=name, overwrite=True
        )
        model = load_backbone(tmp_path / "a.pkl").model
        assert model and all(np.array_equal(array, state[key]) for key, array in model.items())
        table = theirs.get("model", theirs)
        parts = sum(key.endswith("v_bias") for key in model)  # of a tensor that has two
        assert done.tensors - parts + len(done.left) == len(table)


def test_biases_that_the_network_named_lacks_are_not_lost(tmp_path: Path) -> None:
    theirs = authors_dinov3_vit(trained("vit_micro_dinov3_qkvb"))
    line = refusal(save(theirs, tmp_path / "a.pth"), arch="vit_micro_dinov3")
    assert "no place for all of blocks.0.attn.qkv.bias, whose rest is not zero: --arch" in line
    zero = {k: 0 * t if k.endswith("qkv.bias") else t for k, t in theirs.items()}
    assert convert(save(zero, tmp_path / "z.pth"), tmp_path / "z.pkl", arch="vit_micro_dinov3")
    # biases of keys, which neither network has
    keyed = {k: t + 1 if k.endswith("qkv.bias") else t for k, t in theirs.items()}
    arch = "vit_micro_dinov3_qkvb"
    assert "whose rest is not zero" in refusal(save(keyed, tmp_path / "k.pth"), arch=arch)
    masked = {k: t * MASK if k.endswith("bias_mask") else t for k, t in keyed.items()}
    assert convert(save(masked, tmp_path / "m.pth"), tmp_path / "m.pkl", arch=arch)


def test_what_maes_files_have_beside_the_encoder_is_left_out_by_name(tmp_path: Path) -> None:
    state = trained("test_vit")
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 64)}
    done = convert(
        save({**state, **decoder}, tmp_path / "m.pth"), tmp_path / "m.pkl", arch="test_vit"
    )
    assert set(decoder) <= set(done.left)


def test_a_table_of_another_name_is_reached_by_prefix_and_others_are_named(tmp_path: Path) -> None:
    state = trained("test_vit")
    student = {f"module.backbone.{key}": tensor + 1 for key, tensor in state.items()}
    teacher = {f"backbone.{key}": tensor for key, tensor in state.items()}
    teacher["head.mlp.0.weight"] = torch.ones(3, 3)
    file = save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "dino.pth")
    line = refusal(file, arch="test_vit")
    assert "holds its tensors in student, teacher: name one, and what its names begin with" in line
    assert "by --prefix; student has module.backbone.cls_token" in line
    for prefix, added in (("teacher.backbone", 0), ("student.backbone", 1)):
        done = convert(file, tmp_path / f"{added}.pkl", arch="test_vit", prefix=prefix)
        model = load_backbone(tmp_path / f"{added}.pkl").model
        assert np.allclose(model["cls_token"], state["cls_token"].numpy() + added)
    assert done.source.others == ("the table teacher",)
    both = save({"state_dict": state, "model": state}, tmp_path / "two.pth")
    done = convert(both, tmp_path / "two.pkl", arch="test_vit")
    assert done.source.others == ("the table model",)


def test_a_tensor_beside_the_table_does_not_hide_it(tmp_path: Path) -> None:
    state = trained("test_vit")
    file = save({"state_dict": state, "loss": torch.ones(3)}, tmp_path / "a.pth")
    assert convert(file, tmp_path / "a.pkl", arch="test_vit").tensors == 78


def test_one_name_with_and_without_module_is_refused(tmp_path: Path) -> None:
    state = trained("test_vit")
    both = {**{f"module.{k}": t for k, t in state.items()}, "pos_embed": state["pos_embed"] + 1}
    line = refusal(save(both, tmp_path / "a.pth"), arch="test_vit")
    assert "holds pos_embed and module.pos_embed: save the one that is meant alone" in line


def test_position_embeddings_of_another_grid_are_not_resized_in_silence(tmp_path: Path) -> None:
    state = trained("test_vit")
    state["pos_embed"] = torch.rand(1, state["pos_embed"].shape[1] + 13, 64)
    line = refusal(save(state, tmp_path / "a.pth"), arch="test_vit")
    assert "timm would compute pos_embed anew" in line or "timm does not understand it" in line


def test_torchvisions_regnet_computes_the_same_as_what_it_becomes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.regnet_y_400mf().eval()
    file = save(theirs.state_dict(), tmp_path / "r.pth")
    convert(file, tmp_path / "r.pkl", arch="regnety_004.tv2_in1k")
    model = {n: torch.from_numpy(a) for n, a in load_backbone(tmp_path / "r.pkl").model.items()}
    ours = TimmBackbone("regnety_004").eval()
    assert ours.network.load_state_dict(model, strict=False).unexpected_keys == []
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = ours(x)
        x = theirs.stem(x)
        for block, feature in zip(theirs.trunk_output, features.values(), strict=True):
            x = block(x)
            torch.testing.assert_close(feature, x)


def test_files_of_every_container_and_wrapping_give_the_same_arrays(
    tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in small.items()}
    other = {key: tensor + 1 for key, tensor in small.items()}
    save_file({key: t.contiguous() for key, t in small.items()}, tmp_path / "m.safetensors")
    for file, options in (
        (tmp_path / "m.safetensors", {}),
        (save(small, tmp_path / "pytorch_model.bin"), {}),
        (save({"state_dict": other, "state_dict_ema": wrapped}, tmp_path / "e.pth"), {}),
        (save({"model": wrapped, "model_ema": other}, tmp_path / "w.pth"), {"encoder": "model"}),
        (
            save({"q." + k: t for k, t in small.items()} | {"queue": other["stem.0.bias"]},
                 tmp_path / "q.pth"),
            {"prefix": "q"},
        ),
    ):  # fmt: skip
        output = tmp_path / f"{file.stem}.pkl"
        done = convert(file, output, arch="test_convnext", **options)
        model = load_backbone(output).model
        assert all(np.array_equal(array, small[key]) for key, array in model.items()), file
        assert len(done.left) == 4
    assert done.source.others == ("queue",)


def test_a_config_json_beside_the_file_names_network_and_pixels(
    tmp_path: Path, small: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(small, tmp_path / "pytorch_model.bin")
    assert "by --arch NAME" in refusal(file)
    describe(tmp_path, "test_convnext.r160_in1k")
    assert main([str(file), str(tmp_path / "a.pkl")]) == 0
    printed = capsys.readouterr().out
    assert "architecture  test_convnext.r160_in1k" in printed
    assert "(config.json beside the file says so)" in printed
    assert "(as config.json beside the file says)" in printed and "bicubic" in printed
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("[0.5,", "[0.25,"))
    convert(file, tmp_path / "b.pkl", arch="test_convnext")
    assert (load_backbone(tmp_path / "b.pkl").input or {})["mean"][0] == 63.75
    convert(file, tmp_path / "c.pkl", arch="test_convnext.r160_in1k")
    (tmp_path / "config.json").write_text(text.replace('"mean"', '"men"'))
    assert "states no mean" in refusal(file)
    describe(tmp_path, "test_convnext.r160_in1k", model_args={"use_grn": True})
    assert "use_grn make another test_convnext" in refusal(file)
    (tmp_path / "config.json").write_text('{"architecture": "test_convnex", "mean": 1}')
    assert "test_convnext" in refusal(file)


def test_names_are_timms_and_a_network_of_other_shapes_is_refused(
    tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    file = save(small, tmp_path / "a.pth")
    assert "did you mean test_convnext" in refusal(file, arch="test_convnex")
    assert "did you mean r160_in1k" in refusal(file, arch="test_convnext.r160_ink")
    assert "read from its shapes" in refusal(file, arch="resnet50")
    assert "--from timm is for ResNets" in refusal(file, arch="test_convnext", source_format="timm")
    assert "strides" in refusal(file, arch="vit_small_patch14_dinov2")
    assert "is no test_convnext2 (--arch says so): " in refusal(file, arch="test_convnext2")
    atto = save(timm.create_model("convnext_atto").state_dict(), tmp_path / "o.pth")
    assert "convnext_femto (--arch says so): stem.0.weight is 40x3x4x4 and not 48x3x4x4" in refusal(
        atto, arch="convnext_femto"
    )
    assert "tensors missing (stages.0.blocks.0.mlp.grn" in refusal(atto, arch="convnextv2_atto")
    assert "269 tensors missing" in refusal(file, arch="regnety_002")
    assert "timm does not understand it (KeyError" in refusal(
        save({"stages.9.0.pwconv1.weight": torch.ones(4, 4)}, tmp_path / "x.pth"),
        arch="test_convnext",
    )
    deeper = small | {"stages.3.blocks.8.gamma": torch.ones(64)}
    assert "1 that it does not have (stages.3.blocks.8.gamma)" in refusal(
        save(deeper, tmp_path / "d.pth"), arch="test_convnext"
    )
    with pytest.raises(InputError, match="torchvision has no names for: --to timm"):
        convert(file, tmp_path / "t.pth", arch="test_convnext", target_format="torchvision")


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm resizes by old means
def test_a_swin_of_another_window_is_not_resized_in_silence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("swin_micro", window_size=3).state_dict()
    line = refusal(save(state, tmp_path / "s.pth"), arch="swin_micro")
    assert "timm would compute layers.0.blocks.0.attn.relative_position_bias_table anew" in line


def test_weights_that_were_fed_differently_need_their_tag(tmp_path: Path) -> None:
    state = timm.create_model("efficientnet_b0").state_dict()
    file = save({"arch": "efficientnet_b0", "state_dict": state}, tmp_path / "e.pth")
    line = refusal(file)
    assert "--arch efficientnet_b0.ra_in1k (mean (0.485" in line and "mean (0.5, 0.5, 0.5)" in line


def test_inspect_says_what_a_network_of_timm_is(
    tmp_path: Path, small: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    file = save({"arch": "test_convnext", "state_dict": small}, tmp_path / "a.pth")
    facts = inspect(file)
    assert facts["convertible"] and facts["format"] == "timm-network"
    assert facts["architecture"] == "test_convnext" and facts["backbone_tensors"] == 97
    assert facts["head"][0] == "head.norm.weight" and facts["stages"] is None
    assert facts["input"]["input_size"] == [3, 160, 160] and facts["verified"] is None
    convert(file, tmp_path / "a.pkl")
    assert main([str(tmp_path / "a.pkl"), "--inspect"]) == 0
    printed = capsys.readouterr().out
    assert "timm-backbone" in printed and "bicubic resizing to [3, 160, 160]" in printed
    assert not inspect(save(small, tmp_path / "b.pth"))["convertible"]
    with pytest.raises(InputError, match=r"convert-weights .*a\.pth"):
        load_backbone(file)


def test_nothing_of_timm_is_imported_for_a_resnet_or_a_converted_file(
    torchvision_file: Path, tmp_path: Path, small: dict[str, torch.Tensor]
) -> None:
    convert(save(small, tmp_path / "a.pth"), tmp_path / "a.pkl", arch="test_convnext")
    code = (
        "import sys; from moco_det.weights.convert import convert\n"
        "from moco_det.weights.backbone import load_backbone\n"
        "sys.modules['timm'] = None\n"
        f"convert({str(torchvision_file)!r}, {str(tmp_path / 'r.pkl')!r})\n"
        f"print(load_backbone({str(tmp_path / 'a.pkl')!r}).architecture)\n"
        "from moco_det.foundation.errors import InputError\n"
        f"try: convert({str(tmp_path / 'a.pth')!r}, 'no.pkl', arch='test_convnext')\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, missing = done.stdout.splitlines()
    assert name == "test_convnext" and "pip install 'moco-det[timm]'" in missing
