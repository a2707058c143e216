"""Metadata of moco-det; everything a tool reads (ruff, mypy, pytest) is in pyproject.toml."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """`__version__` of moco_det/__init__.py, read as text: nothing is imported to install."""
    for node in ast.parse((HERE / "moco_det/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("moco_det/__init__.py has no line `__version__ = ...`")


def read_readme() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",  # 0.21 is the sister of torch 2.6; its own pin on torch keeps the pair
    "numpy>=1.24",
    "fvcore>=0.1.5,<0.1.6",
    # detectron2 refuses 0.1.10; asking for less here lets both live in one environment.
    "iopath>=0.1.7,<0.1.10",
    "pycocotools>=2.0.8",
    # The same `cv2` as opencv-python without its windows: the Qt that opencv-python brings loads
    # libGL.so.1 and libgthread-2.0.so.0 from the system, which servers and slim containers lack,
    # and `import cv2` dies there. Where opencv-python is installed already, both can stay.
    "opencv-python-headless>=4.8",
    "pyyaml>=6.0",
    "pillow>=10.1",  # the first whose own font has sizes
    "scipy>=1.10",
    "jinja2>=3.1",
    "markupsafe>=2.0",
    "tqdm>=4.64",
    "safetensors>=0.4",
    "webdataset>=1.0,<2",  # tar shards of pre-training images; pure Python
]

EXTRAS = {
    # What a detectron2 checkout needs beside REQUIRES to be imported and to train from yaml
    # (detectron2 itself is on no package index). hydra-core and black, which its setup.py lists
    # too, are only asked for by its LazyConfig python configs.
    "detectron2": [
        "omegaconf>=2.1,<2.4",
        "cloudpickle>=2.0",
        "packaging",
        "matplotlib",
        "tensorboard",
        "timm>=1.0.20",
    ],
    "tensorboard": ["tensorboard"],
    # for weights by the names timm:NAME and hf://OWNER/REPO/FILE
    "hub": ["timm>=0.9", "huggingface_hub>=0.20"],
    # for backbones of timm (MODEL.BACKBONE.NAME build_timm_fpn_backbone)
    "timm": ["timm>=1.0.20"],
    "dev": [
        "pytest>=8.0",
        "pytest-xdist>=3.5",
        "pytest-cov>=5.0",
        "hypothesis>=6.100",
        "ruff>=0.17,<0.18",  # a newer one formats differently
        "mypy>=2.4,<2.5",  # a newer one finds more
        "types-PyYAML",
        "tensorboard",
    ],
}

setup(
    name="moco-det",
    version=read_version(),
    description="Detection transfer of self-supervised ResNets, honestly compared.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="the moco-det authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["moco_det", "moco_det.*", "pretrain", "pretrain.*"]),
        "moco_det_tools",
        "moco_det_configs",
    ],
    # In a checkout the two folders have short names; installed they need ones nobody else has.
    package_dir={"moco_det_tools": "tools", "moco_det_configs": "configs"},
    package_data={
        "moco_det": ["py.typed"],
        "moco_det.runs.quickstart": ["checkpoints/*.pth"],
        "moco_det.results": ["data/*.yaml"],
        "moco_det.settings": ["*.yaml"],
        "moco_det.weights": ["formats.yaml"],
        "moco_det.report": ["templates/*", "templates/**/*"],
        "pretrain": ["py.typed"],
        "moco_det_configs": ["*.yaml", "**/*.yaml"],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["moco-det=moco_det_tools.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
