"""Formats of the code that came with a paper."""

from __future__ import annotations

from moco_det.weights.formats.row import MODEL, PLAIN, RGB_IMAGENET, STATE_DICT, Format, has
from moco_det.weights.formats.vocabularies import from_children, from_torchvision

MOCO = (
    Format(
        name="moco-det/1",
        read_from="this project's tools/pretrain.py",
        containers=(("encoder",),),
        encoders={"query": ("",)},
        vocabulary=from_torchvision,
        head=(r"fc\..*",),
        marker=("format", ("moco-det/1",)),
    ),
    Format(
        name="facebookresearch/moco",
        read_from="moco/builder.py and main_moco.py, v1 and v2",
        containers=STATE_DICT,
        encoders={"query": (r"(module\.)?encoder_q\.",), "key": (r"(module\.)?encoder_k\.",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?encoder_[qk]\.fc\..*", r"(module\.)?queue(_ptr)?"),
        input=RGB_IMAGENET,
    ),
    Format(
        name="facebookresearch/moco-v3",
        read_from="moco/builder.py (ResNet encoders)",
        containers=STATE_DICT,
        encoders={
            "query": (r"(module\.)?base_encoder\.",),
            "key": (r"(module\.)?momentum_encoder\.",),
        },
        vocabulary=from_torchvision,
        head=(r"(module\.)?(base|momentum)_encoder\.fc\..*", r"(module\.)?predictor\..*"),
        input=RGB_IMAGENET,
    ),
    Format(
        name="facebookresearch/simsiam",
        read_from="simsiam/builder.py",
        containers=STATE_DICT,
        encoders={"query": (r"(module\.)?encoder\.",)},
        vocabulary=from_torchvision,
        head=(r"(module\.)?encoder\.fc\..*", r"(module\.)?predictor\..*"),
        sign=has(r"(module\.)?predictor\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="lemniscate",
        read_from="zhirongw/lemniscate.pytorch main.py (InstDisc)",
        containers=(("state_dict",),),
        encoders={"query": PLAIN},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        marker=("lemniscate", None),
        input=RGB_IMAGENET,
    ),
)

PAPERS = (
    Format(
        name="pycontrast",
        read_from="networks/build_backbone.py, learning/contrast_trainer.py (RGB models)",
        containers=(("model", "model_ema"),),
        encoders={
            "query": (r"model:(module\.)?encoder\.",),
            "key": (r"model_ema:(module\.)?encoder\.",),
        },
        vocabulary=from_torchvision,
        head=(r"model(_ema)?:(module\.)?head(_jig)?\..*",),
        sign=has(r"model:(module\.)?head(_jig)?\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="pixpro",
        read_from="contrast/models/PixPro.py, main_pretrain.py",
        containers=MODEL,
        encoders={"query": (r"(module\.)?encoder\.",), "key": (r"(module\.)?encoder_k\.",)},
        vocabulary=from_torchvision,
        head=(
            r"(module\.)?projector(_instance)?(_k)?\..*",
            r"(module\.)?(predictor|value_transform)\..*",
        ),
        sign=has(r"(module\.)?(encoder_k|projector(_instance)?)\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="swav",
        read_from="src/resnet50.py, main_swav.py (SwAV, DeepCluster-v2, SeLa-v2)",
        containers=STATE_DICT,
        encoders={"query": PLAIN},
        vocabulary=from_torchvision,
        head=(r"(module\.)?(projection_head|prototypes)\..*",),
        sign=has(r"(module\.)?(projection_head|prototypes)\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="dino",
        read_from="main_dino.py, utils.py (torchvision encoders)",
        containers=(("student", "teacher"),),
        encoders={
            "teacher": (r"teacher:(module\.)?backbone\.",),
            "student": (r"student:(module\.)?backbone\.",),
        },
        vocabulary=from_torchvision,
        head=(r"(student|teacher):(module\.)?head\..*",),
        input=RGB_IMAGENET,
    ),
    Format(
        name="byol-pytorch",
        read_from="lucidrains/byol-pytorch byol_pytorch.py",
        containers=(*STATE_DICT, *MODEL),
        encoders={
            "online": (r"(module\.|learner\.)?online_encoder\.net\.",),
            "target": (r"(module\.|learner\.)?target_encoder\.net\.",),
        },
        vocabulary=from_torchvision,
        head=(
            r"(module\.|learner\.)?net\..*",  # the online encoder's network again
            r"(module\.|learner\.)?(online|target)_encoder\.(net\.fc|projector)\..*",
            r"(module\.|learner\.)?online_predictor\..*",
        ),
        input=RGB_IMAGENET,
    ),
    Format(
        name="byol-networks",
        read_from="sthalles/PyTorch-BYOL trainer.py",
        containers=(("online_network_state_dict", "target_network_state_dict"),),
        encoders={
            "online": (r"online_network_state_dict:(module\.)?encoder\.",),
            "target": (r"target_network_state_dict:(module\.)?encoder\.",),
        },
        vocabulary=from_children,
        head=(r"(online|target)_network_state_dict:(module\.)?projetion\..*",),
        input=RGB_IMAGENET,
    ),
    Format(
        name="byol-model",
        read_from="yaox12/BYOL-PyTorch model/byol_model.py, trainer/byol_trainer.py",
        containers=MODEL,
        encoders={
            "online": (r"(module\.)?online_network\.encoder\.",),
            "target": (r"(module\.)?target_network\.encoder\.",),
        },
        vocabulary=from_children,
        head=(r"(module\.)?((online|target)_network\.projetion|predictor)\..*",),
        input=RGB_IMAGENET,
    ),
)
