"""What the project promises from outside: metadata, commands, files, harmless imports."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moco_det
from moco_det.foundation.errors import InputError
from moco_det_tools import cli

REPO = Path(__file__).resolve().parent.parent
NO_SCRIPTS = ("__init__", "entry", "matrix_options", "cli")
SCRIPTS = sorted(file for file in (REPO / "tools").glob("*.py") if file.stem not in NO_SCRIPTS)
# name in an import statement -> name on the package index, where the two differ
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "PIL": "pillow"}


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keywords that setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    caught: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: caught.update(keywords))
    monkeypatch.chdir(REPO)
    runpy.run_path(str(REPO / "setup.py"))
    return caught


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


def foreign_imports(folder: Path) -> set[str]:
    """Top-level names of what the modules below a folder import and Python does not bring."""
    names = set()
    files = sorted(folder.rglob("*.py"))
    assert files, f"{folder} holds no modules"
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"moco_det", "pretrain", "moco_det_tools"}


def test_one_version_everywhere(metadata: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", moco_det.__version__)
    assert metadata["version"] == moco_det.__version__
    assert importlib.metadata.version("moco-det") == moco_det.__version__


def test_setup_names_every_package_and_its_data(metadata: dict[str, Any]) -> None:
    assert metadata["name"] == "moco-det"
    assert metadata["python_requires"] == ">=3.10"
    assert {"moco_det", "moco_det.report", "pretrain", "moco_det_tools", "moco_det_configs"} <= set(
        metadata["packages"]
    )
    for package, patterns in metadata["package_data"].items():
        folder = REPO / metadata["package_dir"].get(package, package.replace(".", "/"))
        assert any(list(folder.glob(pattern)) for pattern in patterns), f"{package}: {patterns}"


@pytest.mark.parametrize("folder", ["moco_det", "pretrain", "tools"])
def test_every_foreign_import_is_a_declared_requirement(
    folder: str, metadata: dict[str, Any]
) -> None:
    declared = requirement_names(metadata["install_requires"])
    for extra in ("detectron2", "tensorboard", "hub"):
        declared |= requirement_names(metadata["extras_require"][extra])
    declared.add("detectron2")  # on no index; its own instructions install it
    declared.add("triton")  # comes with torch for GPUs, and only there it is imported
    used = {DISTRIBUTIONS.get(name, name).lower() for name in foreign_imports(REPO / folder)}
    assert used - declared == set()


def test_configs_are_found_through_the_installed_package() -> None:
    configs = importlib.resources.files("moco_det_configs")
    files = sorted(Path(str(configs)).rglob("*.yaml"))
    assert files
    assert {file.relative_to(REPO / "configs").parts[0] for file in files} >= {"quick", "pretrain"}


def test_readme_names_the_two_commands() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "Makefile", ".ci/run"])
def test_the_house_has_its_papers(name: str) -> None:
    assert (REPO / name).stat().st_size > 0


def test_the_check_script_can_be_run() -> None:
    assert os.access(REPO / ".ci/run", os.X_OK)
    assert "make test" in (REPO / ".ci/run").read_text(encoding="utf-8")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert set(cli.COMMANDS) >= {"pretrain", "convert-weights", "train-net", "report", "quickstart"}
    for name, line in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", printed, re.MULTILINE)


def test_every_command_is_a_tool_and_every_tool_a_command() -> None:
    assert set(cli.COMMANDS) == {script.stem.replace("_", "-") for script in SCRIPTS}


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_is_printed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([option]) == 0
    assert capsys.readouterr().out == f"moco-det {moco_det.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["train"], ["--engine", "auto"]])
def test_a_missing_or_unknown_command_ends_with_2_and_the_list(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for name in cli.COMMANDS:
        assert name in captured.err


def test_a_command_gets_its_arguments_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Tool:
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.extend([argv, sys.argv])
            return 7

    monkeypatch.setitem(sys.modules, "moco_det_tools.report", Tool)
    before = list(sys.argv)
    assert cli.main(["report", "a.jsonl", "-o", "out"]) == 7
    assert seen == [["a.jsonl", "-o", "out"], ["moco-det report", "a.jsonl", "-o", "out"]]
    assert sys.argv == before


def test_bad_input_to_a_command_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tool:
        @staticmethod
        def main(argv: list[str]) -> int:
            raise InputError("no file a.jsonl;\n give one")

    monkeypatch.setitem(sys.modules, "moco_det_tools.report", Tool)
    assert cli.main(["report"]) == 2
    assert capsys.readouterr().err == "error: no file a.jsonl; give one\n"


def test_remarks_that_a_user_can_do_nothing_about_are_left_out_in_child_processes_too() -> None:
    warn = (
        "import warnings; "
        "warnings.warn('`broadcast_buffers` is deprecated', FutureWarning); "
        "warnings.warn('torch.distributed.nn.functional.all_reduce is', FutureWarning); "
        "warnings.warn('`torch.jit.script` is', FutureWarning); "
        "warnings.warn('Grad strides do not match bucket view strides. This', UserWarning); "
        "warnings.warn('something of our own', FutureWarning)"
    )
    program = (
        "import subprocess, sys; from moco_det_tools.entry import run; "
        f"sys.exit(run(lambda: subprocess.call([sys.executable, '-c', {warn!r}]) or exec({warn!r})"
        " or 0))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    said = [line for line in child.stderr.splitlines() if "Warning:" in line]
    assert len(said) == 2 and all(line.endswith("something of our own") for line in said)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_tool_explains_itself_when_run_as_a_script(script: Path, tmp_path: Path) -> None:
    """As `python tools/x.py`, where tools/ leads sys.path and pretrain.py is beside the script."""
    child = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith(f"usage: python {script} ")
    assert list(tmp_path.iterdir()) == []


def test_a_script_of_another_checkout_than_the_installed_one_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "tools"
    shutil.copytree(REPO / "tools", other, ignore=shutil.ignore_patterns("__pycache__"))
    child = subprocess.run(
        [sys.executable, str(other / "plan.py"), "--help"], capture_output=True, text=True
    )
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.startswith(f"error: {other / 'plan.py'} is a script of another checkout")
    assert child.stderr.count("\n") == 1


def project_modules(*folders: str) -> list[str]:
    """Dotted names of the modules below folders of the repository, the plugin's left out."""
    files = [file for folder in folders for file in sorted((REPO / folder).rglob("*.py"))]
    files += [REPO / f"{folder}.py" for folder in folders if (REPO / f"{folder}.py").is_file()]
    assert files
    parts = [file.relative_to(REPO).with_suffix("").parts for file in files]
    names = [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
    return [name for name in names if not name.startswith("moco_det.plugin")]


# Imports the named modules one after another and says which of them did more than define things.
PROBE = """
import importlib, json, logging, os, pathlib, random, sys
def state():
    out = {"files": sorted(str(p) for p in pathlib.Path(".").rglob("*")),
           "environment": dict(os.environ), "log handlers": len(logging.getLogger().handlers),
           "random state": hash(random.getstate()), "sys.path": list(sys.path)}
    if "torch" in sys.modules:
        import torch
        out["torch threads"] = torch.get_num_threads()
        out["torch seed"] = torch.initial_seed()
        out["torch default dtype"] = str(torch.get_default_dtype())
    if "cv2" in sys.modules:
        import cv2
        out["cv2 threads"] = cv2.getNumThreads()
    return out
faults = []
for foreign in json.loads(sys.argv[1]):
    importlib.import_module(foreign)
for module in json.loads(sys.argv[2]):
    before = state()
    importlib.import_module(module)
    after = state()
    faults += [f"{module} changes {key}" for key in before if before[key] != after[key]]
print(json.dumps({"faults": faults, "torch": "torch" in sys.modules}))
"""


def import_in_child(modules: list[str], foreign: list[str], folder: Path) -> dict[str, object]:
    """Import modules in a fresh process whose home and working folder are an empty one.

    Foreign packages come first: what they do to the process is not this project's doing.
    """
    child = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(foreign), json.dumps(modules)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 1, f"importing printed {lines[:-1]}"
    report: dict[str, object] = json.loads(lines[0])
    return report


def test_importing_has_no_side_effect(tmp_path: Path) -> None:
    modules = project_modules("moco_det", "pretrain")
    assert len(modules) > 10
    foreign = ["torch", "torchvision", "fvcore", "cv2", "scipy.stats", "jinja2", "pycocotools"]
    assert import_in_child(modules, foreign, tmp_path)["faults"] == []


def test_a_side_effect_of_an_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import os\nos.environ['LOUD'] = '1'\nopen('x', 'w')")
    faults = import_in_child(["loud"], [], tmp_path)["faults"]
    assert faults == ["loud changes files", "loud changes environment"]


def test_results_and_report_are_imported_without_torch(tmp_path: Path) -> None:
    packages = [f"moco_det/{name}" for name in ("data", "scoring", "results", "report")]
    modules = project_modules(*packages)
    assert len(modules) >= 4
    assert import_in_child(modules, [], tmp_path)["torch"] is False
