"""Whether the packages that every run needs are there and fit each other."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator

from moco_det.doctor.finding import FAULT, NOTE, OK, Finding

PYTHONS = ((3, 10), (3, 13))
# module -> what the package index calls it
REQUIRED = {
    "numpy": "numpy",
    "fvcore": "fvcore",
    "pycocotools.mask": "pycocotools",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
    "PIL.Image": "pillow",
    "scipy": "scipy",
    "jinja2": "jinja2",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "webdataset": "webdataset",
}
AGAIN = "install moco-det again into this environment: pip install moco-det"


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
    """Everything but torch in one line, or a line for each that does not work."""
    whole = []
    for module, package in REQUIRED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken binary may raise anything
            yield Finding(FAULT, f"{package} cannot be imported: {first_line(error)}", AGAIN)
        else:
            whole.append(f"{package} {version_of(package)}")
    yield Finding(OK, ", ".join(whole))


def check_torch(run_operators: Callable[[], None] | None = None) -> Iterator[Finding]:
    """torch and torchvision, and that torchvision's operators are of this torch."""
    try:
        import torch
        import torchvision
    except Exception as error:
        yield Finding(
            FAULT,
            f"torch and torchvision cannot be imported: {first_line(error)}",
            "install both from one place: pip install --force-reinstall torch torchvision",
        )
        return
    pair = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    try:
        (run_operators or run_torchvision_operators)()
    except Exception as error:  # torch raises RuntimeError, NotImplementedError and others here
        yield Finding(
            FAULT,
            f"{pair}: torchvision's operators do not run: {first_line(error)}",
            "the two are of different builds; install both from one place: "
            "pip install --force-reinstall torch torchvision",
        )
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


def version_of(package: str) -> str:
    """Installed version of a package; opencv has several names."""
    names = (package, "opencv-python") if package == "opencv-python-headless" else (package,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
