"""Formats of libraries: OpenMMLab's, VISSL, solo-learn, lightly, torchvision, timm."""

from __future__ import annotations

from moco_det.weights.formats.row import (
    BGR_MSRA,
    PLAIN,
    RGB_IMAGENET,
    STATE_DICT,
    Format,
    has,
)
from moco_det.weights.formats.vocabularies import (
    from_children,
    from_children_or_torchvision,
    from_torchvision,
)

_NECKS = r"(neck|head|memory_bank|data_preprocessor)\..*"
_BACKBONE = (r"(module\.)?backbone\.",)

LIBRARIES = (
    Format(
        name="openselfsup",
        read_from="OpenSelfSup, mmselfsup and mmpretrain: MoCo, NPID, SimCLR and the like",
        containers=STATE_DICT,
        encoders={
            "query": _BACKBONE,
            "key": (r"(module\.)?(encoder_k|momentum_encoder)\.(module\.)?0\.",),
        },
        vocabulary=from_torchvision,
        head=(
            rf"(module\.)?{_NECKS}",
            r"(module\.)?encoder_q\..*",  # OpenSelfSup stores the backbone a second time here
            r"(module\.)?(encoder_k|momentum_encoder)\.((module\.)?1\..*|steps)",
            r"(module\.)?(queue(_ptr)?|loss_weight)",
        ),
        sign=has(r"(module\.)?(neck|head|encoder_[qk]|momentum_encoder|memory_bank)\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="densecl",
        read_from="WXinlong/DenseCL models/densecl.py; mmselfsup's DenseCL has the same keys",
        containers=STATE_DICT,
        encoders={"query": _BACKBONE, "key": (r"(module\.)?encoder_k\.(module\.)?0\.",)},
        vocabulary=from_torchvision,
        head=(
            rf"(module\.)?{_NECKS}",
            r"(module\.)?encoder_q\..*",
            r"(module\.)?encoder_k\.((module\.)?1\..*|steps)",
            r"(module\.)?queue2?(_ptr)?",
        ),
        sign=has(r"(module\.)?queue2(_ptr)?$"),
        input=RGB_IMAGENET,
    ),
    Format(
        name="openselfsup-byol",
        read_from="OpenSelfSup, mmselfsup and mmpretrain: BYOL",
        containers=STATE_DICT,
        encoders={
            "online": _BACKBONE,
            "target": (r"(module\.)?target_net\.(module\.)?0\.",),
        },
        vocabulary=from_torchvision,
        head=(
            rf"(module\.)?{_NECKS}",
            r"(module\.)?online_net\..*",  # the backbone a second time
            r"(module\.)?target_net\.((module\.)?1\..*|steps)",
        ),
        sign=has(r"(module\.)?target_net\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="openselfsup-backbone",
        read_from="tools/extract_backbone_weights.py of OpenSelfSup, mmselfsup and DenseCL",
        containers=(("state_dict",),),
        encoders={"query": ("",)},
        vocabulary=from_torchvision,
        head=(r"fc\..*",),
        marker=("author", ("OpenSelfSup", "MMSelfSup", "DenseCL")),
        input=RGB_IMAGENET,
    ),
    Format(
        name="vissl",
        read_from="vissl/models/trunks/resnext.py, models/base_ssl_model.py, losses/moco_loss.py",
        containers=(
            (
                "classy_state_dict/base_model/model/trunk",
                "classy_state_dict/base_model/model/heads",
                "classy_state_dict/loss",
            ),
            ("model_state_dict",),
            ("",),
        ),
        encoders={
            "query": (r"(trunk:)?(base_model\.)?_feature_blocks\.",),
            "key": (r"loss:moco_encoder\.trunk\.(base_model\.)?_feature_blocks\.",),
        },
        vocabulary=from_torchvision,
        head=(
            r"heads:.*|(trunk:)?(base_model\.)?_feature_blocks\.(fc|clf)\..*",
            r"loss:(?!moco_encoder\.trunk\.).*",
        ),
        input=RGB_IMAGENET,
    ),
    Format(
        name="solo-learn",
        read_from="solo/methods/base.py and the methods",
        containers=STATE_DICT,
        encoders={
            "query": (r"(backbone|encoder)\.",),
            "key": (r"momentum_(backbone|encoder)\.",),
        },
        vocabulary=from_torchvision,
        head=(
            r"(momentum_)?(projector|classifier|predictor2?|prototypes|head)\..*",
            r"queue(_ptr|_y|_index)?|local_memory_(index|embeddings)",
            r"(transformer_encoder|dino_loss_func|whitening)\..*",
            r"(momentum_)?(backbone|encoder)\.fc\..*",
        ),
        sign=has(r"(momentum_)?(classifier|projector)\."),
        input=RGB_IMAGENET,
    ),
)

_LIGHTLY_HEAD = (
    r"((key|teacher|student|anchor|local)_)?(projection|prediction|linear)_head(_(local|global))?"
    r"(_momentum)?\..*",
    r"((key|teacher|student)_)?head\..*",
    r"(online_classifier|knn_classifier|criterion(_(local|global))?|prototypes|queues|smog|"
    r"memory_bank)\..*",
)
LIGHTLY = (
    Format(
        name="lightly",
        read_from="examples/pytorch and examples/pytorch_lightning",
        containers=STATE_DICT,
        encoders={"query": (r"backbone\.",), "key": (r"backbone_momentum\.",)},
        vocabulary=from_children,
        head=_LIGHTLY_HEAD,
        input=RGB_IMAGENET,
    ),
    Format(
        name="lightly-benchmark",
        read_from="benchmarks/imagenet/resnet50",
        containers=STATE_DICT,
        encoders={"query": (r"backbone\.",), "key": (r"(key|teacher)_backbone\.",)},
        vocabulary=from_torchvision,
        head=_LIGHTLY_HEAD,
        sign=has(r"projection_head\."),
        input=RGB_IMAGENET,
    ),
    Format(
        name="lightly-dino",
        read_from="examples/pytorch/dino.py, benchmarks/imagenet/resnet50/dino.py",
        containers=STATE_DICT,
        encoders={
            "teacher": (r"teacher_backbone\.", r"backbone\."),
            "student": (r"student_backbone\.",),
        },
        vocabulary=from_children_or_torchvision,
        head=_LIGHTLY_HEAD,
        sign=has(r"student_backbone\."),
        input=RGB_IMAGENET,
    ),
)

SUPERVISED = (
    Format(
        name="torchvision",
        read_from="torchvision.models.resnet; also the ResNet names of timm",
        containers=(("",), ("state_dict",), ("model",)),
        encoders={"query": PLAIN},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        input=RGB_IMAGENET,
    ),
    Format(
        name="torchvision-training",
        read_from="pytorch/vision references/classification/train.py with --model-ema",
        containers=(("model", "model_ema"),),
        encoders={"ema": (r"model_ema:(module\.)?",), "model": (r"model:(module\.)?",)},
        vocabulary=from_torchvision,
        head=(r"model(_ema)?:((module\.)?fc\..*|n_averaged)",),
        marker=("model_ema", None),
        input=RGB_IMAGENET,
    ),
    Format(
        name="timm-training",
        read_from="timm.utils.CheckpointSaver with an average of the weights",
        containers=(("state_dict", "state_dict_ema"),),
        encoders={"ema": (r"state_dict_ema:(module\.)?",), "model": (r"state_dict:(module\.)?",)},
        vocabulary=from_torchvision,
        head=(r"state_dict(_ema)?:(module\.)?fc\..*",),
        marker=("state_dict_ema", None),
        input=RGB_IMAGENET,
    ),
    Format(
        name="torchvision-msra",
        read_from="OpenMMLab's copies of caffe models (resnet50_caffe, resnet50_msra)",
        containers=(("",), ("state_dict",), ("model",)),
        encoders={"query": PLAIN},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        input=BGR_MSRA,
        recognised=False,  # its names are torchvision's: nothing in the file tells
    ),
    Format(
        name="timm",
        read_from="timm.models.resnet: its names are torchvision's",
        containers=STATE_DICT,
        encoders={"query": PLAIN},
        vocabulary=from_torchvision,
        head=(r"(module\.)?fc\..*",),
        input=RGB_IMAGENET,
        recognised=False,
    ),
)
