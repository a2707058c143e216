"""Whether the packages that every run needs are there and fit each other."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from moco_det.doctor.finding import FAULT, NOTE, OK, Finding

PYTHONS = ((3, 10), (3, 13))
REQUIRED = (
    *("numpy", "fvcore", "pycocotools", "opencv-python-headless", "pyyaml", "pillow", "scipy"),
    *("jinja2", "safetensors", "tqdm", "webdataset"),
)
# package -> what is imported of it, where that is called otherwise
MODULES = {
    "pycocotools": "pycocotools.mask",
    "opencv-python-headless": "cv2",
    "pyyaml": "yaml",
    "pillow": "PIL.Image",
}
AGAIN = "install moco-det again into this environment: pip install moco-det"
ONE_PLACE = "install both from one place: pip install --force-reinstall torch torchvision"


def check_python() -> Iterator[Finding]:
    """The interpreter and the machine it runs on."""
    version = sys.version_info[:2]
    what = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if version < PYTHONS[0]:
        yield Finding(FAULT, what, "use Python 3.10 or later")
    elif version > PYTHONS[1]:
        yield Finding(NOTE, f"{what}: later than the newest that the tests know, 3.13")
    else:
        yield Finding(OK, what)


def check_required() -> Iterator[Finding]:
    """Everything but torch in one line, and a line per package that does not work."""
    working = []
    for package in REQUIRED:
        try:
            module = importlib.import_module(MODULES.get(package, package))
        except Exception as error:  # a broken binary may raise anything
            yield Finding(FAULT, f"{package} cannot be imported: {first_line(error)}", AGAIN)
            continue
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:  # opencv comes under several names
            version = getattr(module, "__version__", "of unknown version")
        working.append(f"{package} {version}")
    yield Finding(OK, ", ".join(working))


def check_torch(run_operators: Callable[[], None] | None = None) -> Iterator[Finding]:
    """torch and torchvision, and that torchvision's operators are of this torch."""
    try:
        import torch
        import torchvision
    except Exception as error:
        what = f"torch and torchvision cannot be imported: {first_line(error)}"
        yield Finding(FAULT, what, ONE_PLACE)
        return
    pair = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    try:
        (run_operators or run_torchvision_operators)()
    except Exception as error:  # torch raises RuntimeError, NotImplementedError and others here
        what = f"{pair}: torchvision's operators do not run: {first_line(error)}"
        yield Finding(FAULT, what, f"the two are of different builds; {ONE_PLACE}")
        return
    yield Finding(OK, f"{pair}: NMS and RoIAlign run on the CPU")


def run_torchvision_operators() -> None:
    """Raise unless NMS and RoIAlign give what they must on one box."""
    import torch
    from torchvision.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]])
    kept = nms(boxes, torch.tensor([0.5, 0.9]), 0.5)
    pooled = roi_align(torch.ones(1, 1, 4, 4), [boxes[:1]], 2, aligned=True)
    if kept.tolist() != [1] or not bool((pooled == 1).all()):
        raise RuntimeError("they run and give wrong numbers")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
