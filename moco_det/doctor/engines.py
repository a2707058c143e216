"""Whether detectron2 works here, how old it is, and which engine a run would take."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from moco_det.doctor.finding import FAULT, NOTE, OK, Finding
from moco_det.doctor.packages import first_line
from moco_det.runs.engines import choose_engine, load_engine

INSTRUCTIONS = "https://detectron2.readthedocs.io/tutorials/install.html"
# What an import of detectron2 says where it fails -> the cure.
CURES = (
    (r"pkg_resources", "pip install 'setuptools<81' (82 took pkg_resources out)"),
    (r"has no attribute '(LINEAR|BILINEAR|NEAREST|CUBIC)'", "Pillow 10 took it out: a detectron2 "
     "of 2023 or later does without; update detectron2, or pip install 'pillow<10'"),
    (r"has no attribute '(bool|float|int|object|str)'", "numpy 1.24 took it out: update "
     "detectron2, or pip install 'numpy<1.24'"),
    (r"undefined symbol|_C", "its operators were compiled for another torch: build detectron2 "
     f"again in this environment ({INSTRUCTIONS}), or put a plain checkout on PYTHONPATH"),
    (r"No module named '(omegaconf|cloudpickle|matplotlib|tensorboard|packaging|yacs)",
     "pip install 'moco-det[detectron2]' brings what it needs"),
)  # fmt: skip


def check_detectron2() -> Iterator[Finding]:
    """detectron2's presence, age, operators and the pkg_resources trap."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        yield Finding(NOTE, f"detectron2 is not installed; nothing here needs it ({INSTRUCTIONS})")
        return
    choice = choose_engine("auto")
    if choice.engine != "detectron2":
        yield Finding(FAULT, choice.reason, cure_of(choice.reason, spec.origin))
        return
    age = age_of(Path(str(spec.origin)).parent)
    yield Finding(OK, f"detectron2 {age}; our heads and backbones are registered in it")
    yield check_operators()
    if importlib.util.find_spec("pkg_resources") is None:
        yield Finding(
            NOTE,
            "pkg_resources is gone (setuptools 82 took it out), so detectron2.model_zoo cannot be "
            "imported; nothing here imports it. Where your own script does: "
            "pip install 'setuptools<81'",
        )


def check_engine() -> Iterator[Finding]:
    """What `--engine auto` takes."""
    choice = choose_engine("auto")
    yield Finding(OK, f"--engine auto takes {choice.engine}: {choice.reason}")


def check_operators() -> Finding:
    """detectron2's own compiled operators."""
    if importlib.util.find_spec("detectron2._C") is None:
        return Finding(NOTE, "detectron2 has no compiled operators; the detectors here need none")
    try:
        importlib.import_module("detectron2._C")
    except Exception as error:
        what = f"detectron2._C: {first_line(error)}"
        return Finding(FAULT, what, cure_of("undefined symbol", None))
    return Finding(OK, "detectron2's compiled operators load")


def cure_of(message: str, origin: str | None) -> str:
    """What to do about an import of detectron2 that says this."""
    for pattern, cure in CURES:
        if re.search(pattern, message):
            return cure
    if origin is None:
        return (
            "the folder `detectron2` that Python finds is no package (the root of a clone?): "
            "leave that folder, or put the clone itself on PYTHONPATH"
        )
    return f"install it anew by {INSTRUCTIONS}, or use --engine standalone"


def age_of(folder: Path) -> str:
    """Version, commit and date as far as they are known: its version has been 0.6 since 2021."""
    names = load_engine("detectron2").describe()
    commit = names.get("commit", "")[:10] or checkout_commit(folder)
    trainer = importlib.import_module("detectron2.engine").SimpleTrainer
    newer = "zero_grad_before_forward" in inspect.signature(trainer.__init__).parameters
    age = "newer than the release 0.6 of 2021" if newer else "as old as release 0.6 of 2021"
    return ", ".join([names["version"], *([f"commit {commit}"] if commit else []), age])


def checkout_commit(folder: Path) -> str:
    """Commit and date of a checkout, or nothing."""
    if shutil.which("git") is None or not (folder.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(folder.parent), "log", "-1", "--format=%h of %cs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
