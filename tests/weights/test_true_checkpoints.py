"""Checkpoints that living libraries made, there and back: timm, torchvision and lightly."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.summaries import conversion_lines
from tests.weights.checkpoints import trained_state

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def train_a_little(module: nn.Module, seed: int) -> None:
    """Every number of the module moved: what a true checkpoint is, without the hours."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(11)
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() == 4:
                sizes = 0.5 + torch.rand(len(tensor), 1, 1, 1, generator=generator)
                tensor.copy_(noise * sizes * (1.1 / tensor[0].numel()) ** 0.5)
            else:
                start = 0.6 if name.endswith("weight") and tensor.dim() == 1 else 0.0
                tensor.copy_(start + 0.1 * noise)


def holds(path: Path, state: dict[str, Tensor], prefix: str = "") -> None:
    """The backbone file has exactly these numbers, looked up under torchvision's names."""
    backbone = load_backbone(path)
    for tensor in backbone_tensors(ARCHITECTURES[backbone.architecture]):
        numbers = state[prefix + tensor.torchvision].detach().numpy()
        assert np.array_equal(backbone.model[tensor.detectron2], numbers), tensor.torchvision


# torchvision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_torchvision_there_and_back_gives_the_same_logits(tmp_path: Path, legacy: bool) -> None:
    model = torchvision.models.resnet18().eval()
    train_a_little(model, 1)
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    conversion = convert(path, tmp_path / "b.pkl")
    assert conversion.source.format == "torchvision" and conversion.tensors == 100
    holds(tmp_path / "b.pkl", model.state_dict())
    convert(tmp_path / "b.pkl", tmp_path / "back.pth")
    back = torchvision.models.resnet18().eval()
    back.fc = model.fc
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    missing = back.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == [] and sorted(missing.missing_keys) == [
        "fc.bias",
        "fc.weight",
    ]
    with torch.inference_mode():
        assert torch.equal(back(IMAGES), model(IMAGES))


def test_torchvisions_reference_training_gives_its_average_by_default(tmp_path: Path) -> None:
    """references/classification/train.py --model-ema; AveragedModel is what it averages with."""
    model = torchvision.models.resnet18()
    train_a_little(model, 1)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    train_a_little(average.module, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    file = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(),
        "epoch": 3,
        "args": None,
        "model_ema": average.state_dict(),
    }
    torch.save(file, tmp_path / "model_3.pth")
    conversion = convert(tmp_path / "model_3.pth", tmp_path / "b.pkl")
    assert conversion.source.format == "torchvision-training"
    assert "encoder       ema (the default; also there: model)" in conversion_lines(conversion)
    holds(tmp_path / "b.pkl", average.module.state_dict())
    convert(tmp_path / "model_3.pth", tmp_path / "last.pkl", encoder="model")
    holds(tmp_path / "last.pkl", model.state_dict())


# timm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet26", "resnet18d", "seresnet18", "resnet18"])
def test_timms_resnets_are_read_or_named_for_what_they_are(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    if name == "resnet18":
        assert read_checkpoint(tmp_path / "model.safetensors").architecture == "resnet18"
        return
    reason = {
        "resnet26": "bottleneck blocks 2-2-2-2",
        "resnet18d": "deep stem|average-pooled shortcut",
        "seresnet18": "channel attention",
    }[name]
    with pytest.raises(Exception, match=f"unsupported architecture: .*({reason})"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_timm_there_and_back_gives_the_same_features(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18").eval()
    train_a_little(model, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", tmp_path / "b.pkl")
    holds(tmp_path / "b.pkl", model.state_dict())
    convert(tmp_path / "b.pkl", tmp_path / "back.safetensors", target_format="timm")
    back = timm.create_model("resnet18", num_classes=0).eval()
    back.load_state_dict(load_file(tmp_path / "back.safetensors"), strict=True)
    with torch.inference_mode():
        assert torch.equal(back.forward_features(IMAGES), model.forward_features(IMAGES))


def test_timms_own_saver_gives_its_average_by_default(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("resnet18")
    train_a_little(model, 1)
    average = ModelEmaV3(model)
    train_a_little(average.module, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    folders = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path)}
    saver = CheckpointSaver(model, optimizer, model_ema=average, **folders)
    saver.save_checkpoint(0, 50.0)
    conversion = convert(tmp_path / "checkpoint-0.pth.tar", tmp_path / "b.pkl")
    assert (conversion.source.format, conversion.source.encoder) == ("timm-training", "ema")
    holds(tmp_path / "b.pkl", average.module.state_dict())
    convert(tmp_path / "checkpoint-0.pth.tar", tmp_path / "last.pkl", encoder="model")
    holds(tmp_path / "last.pkl", model.state_dict())


# lightly ----------------------------------------------------------------------------------------


def lightly_state(method: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """lightly's tutorial module of this method, and the default encoder's torchvision state."""
    heads = pytest.importorskip("lightly.models.modules.heads")
    resnet = torchvision.models.resnet18()
    train_a_little(resnet, 4)
    module = nn.Module()
    children = nn.Sequential(*list(resnet.children())[:-1])
    if method == "dino":
        module.student_backbone = children
        module.student_head = heads.DINOProjectionHead(512, 64, 64, 128, freeze_last_layer=1)
        other = copy.deepcopy(children)
        train_a_little(other, 5)
        module.teacher_backbone = other
        module.teacher_head = heads.DINOProjectionHead(512, 64, 64, 128)
        teacher = torchvision.models.resnet18()
        teacher.load_state_dict(resnet.state_dict())
        for (_, mine), (_, theirs) in zip(
            teacher.named_children(), list(other.named_children()), strict=False
        ):
            mine.load_state_dict(theirs.state_dict())
        return module, teacher.state_dict()
    module.backbone = children
    if method == "moco":
        module.projection_head = heads.MoCoProjectionHead(512, 512, 128)
        module.projection_head_momentum = copy.deepcopy(module.projection_head)
    elif method == "byol":
        module.projection_head = heads.BYOLProjectionHead(512, 1024, 256)
        module.prediction_head = heads.BYOLPredictionHead(256, 1024, 256)
        module.projection_head_momentum = copy.deepcopy(module.projection_head)
    else:
        module.projection_head = heads.SimCLRProjectionHead(512, 512, 128)
    if method != "simclr":
        module.backbone_momentum = copy.deepcopy(children)
        train_a_little(module.backbone_momentum, 6)
    return module, resnet.state_dict()


@pytest.mark.parametrize("method", ["moco", "byol", "simclr", "dino"])
def test_lightlys_modules_are_read_and_their_heads_named(tmp_path: Path, method: str) -> None:
    module, expected = lightly_state(method)
    torch.save(module.state_dict(), tmp_path / "x.ckpt")
    source = read_checkpoint(tmp_path / "x.ckpt")
    assert source.format == ("lightly-dino" if method == "dino" else "lightly")
    assert source.encoder == ("teacher" if method == "dino" else "query")
    assert len(source.encoders) == (1 if method == "simclr" else 2)
    assert all("head" in name for name in source.head) and source.head
    for tensor in backbone_tensors(ARCHITECTURES["resnet18"]):
        numbers = expected[tensor.torchvision].numpy()
        assert np.array_equal(source.array(tensor.torchvision), numbers), tensor


def test_a_lightning_checkpoint_of_lightlys_module_converts(tmp_path: Path) -> None:
    """Lightning's own writer, with the hyper-parameters and callbacks that it stores."""
    lightning = pytest.importorskip("pytorch_lightning")
    module, expected = lightly_state("moco")

    class Model(lightning.LightningModule):
        def __init__(self, temperature: float, folder: Path) -> None:
            super().__init__()
            self.save_hyperparameters()
            for name, child in module.named_children():
                self.add_module(name, child)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", barebones=False, **quiet)
    trainer.strategy.connect(Model(0.2, tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    conversion = convert(tmp_path / "last.ckpt", tmp_path / "b.pkl")
    assert conversion.source.format == "lightly"
    holds(tmp_path / "b.pkl", expected)


# our own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "count"), [("resnet50_w2x", 265), ("resnet18_w0.5x", 100)]
)
def test_a_wide_or_narrow_encoder_of_pretraining_converts_with_proof(
    tmp_path: Path, architecture: str, count: int
) -> None:
    """All of them: benchmarks/conversion_table.py."""
    from pretrain.encoders import ARCHITECTURES

    with torch.device("meta"):
        network = ARCHITECTURES[architecture](nn.BatchNorm2d)
    network.to_empty(device="cpu")
    train_a_little(network, 7)
    encoder = OrderedDict(
        (n, t) for n, t in network.state_dict().items() if not n.startswith("fc.")
    )
    pixels = {"format": "RGB", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    file = {"format": "moco-det/1", "arch": architecture, "encoder": encoder, "input": pixels}
    torch.save(file, tmp_path / "checkpoint.pth")
    conversion = convert(tmp_path / "checkpoint.pth", tmp_path / "b.safetensors")
    assert conversion.source.architecture == architecture and conversion.tensors == count
    assert conversion.warnings == () and conversion.max_abs_difference == 0
    holds(tmp_path / "b.safetensors", encoder)
    convert(tmp_path / "b.safetensors", tmp_path / "b.pth")
    back = torch.load(tmp_path / "b.pth")
    assert back.keys() == encoder.keys()
    # the batch counters are not in a file of detectron2
    assert all(torch.equal(back[n], t) for n, t in encoder.items() if t.is_floating_point())


def test_the_seeded_state_is_one_that_a_network_takes() -> None:
    network = torchvision.models.resnet18()
    network.load_state_dict(trained_state("resnet18", seed=1), strict=True)
