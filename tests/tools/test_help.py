"""The help of every tool is alike: its own name, every default, whole sentences, a version."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moco_det
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det_tools import cli, entry

TOOLS = list(cli.COMMANDS)


def parsers(tool: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[argparse.ArgumentParser]:
    """A tool's parser as `moco-det` makes it, and those of its subcommands."""
    monkeypatch.setattr(sys, "argv", [f"moco-det {tool}"])
    monkeypatch.setenv("COLUMNS", "9999")  # one line per option
    module = importlib.import_module(f"moco_det_tools.{tool.replace('-', '_')}")
    whole = module.parser()
    yield whole
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("tool", TOOLS)
def test_help_has_the_tools_name_and_says_what_it_does_in_a_whole_sentence(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *_ = parsers(tool, monkeypatch)
    usage, said, *_ = whole.format_help().split("\n\n")
    assert usage.startswith(f"usage: moco-det {tool} [-h] [-V]")
    assert re.match(r"[A-Z].*[.:]$", said, re.DOTALL)
    assert "tools/" not in whole.format_help()


@pytest.mark.parametrize("tool", TOOLS)
def test_help_explains_every_option_and_names_every_default(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in parsers(tool, monkeypatch):
        shown = " ".join(parser.format_help().split())
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or not action.option_strings:
                continue
            assert action.help, action.option_strings
            # the help as it is printed, from this option to the next one
            text = parser._get_formatter()._expand_help(action)
            assert " ".join(text.split()) in shown
            if action.nargs != 0 and not action.required:
                assert "default" in text, f"{action.option_strings}: {text}"
            default = action.default if isinstance(action.default, list) else [action.default]
            for value in default:
                if value not in (None, argparse.SUPPRESS) and action.nargs != 0:
                    assert str(value) in text, f"{action.option_strings}: {text}"


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("option", ["-V", "--version"])
def test_every_tool_says_its_version(
    tool: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([tool, option])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"moco-det {moco_det.__version__}\n"


@pytest.mark.parametrize("tool", TOOLS)
def test_an_unknown_option_is_one_line_and_code_2(
    tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([tool, "--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"moco-det {tool} --help" in error or f"moco-det {tool} " in error


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("moco-det train-net", "moco-det convert-weights"),
        ("/usr/bin/pytest", "moco-det convert-weights"),
        ("", "moco-det convert-weights"),
        ("{repo}/tools/train_net.py", "python {repo}/tools/convert_weights.py"),
        ("{repo}/benchmarks/gpu.py", "moco-det convert-weights"),
        ("/site-packages/moco_det_tools/train_net.py", "moco-det convert-weights"),
    ],
)
def test_a_command_is_spelled_as_this_process_was_started(
    started: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Path(__file__).resolve().parents[2]
    monkeypatch.setattr(sys, "argv", [started.format(repo=repo)])
    assert command("convert-weights") == shown.format(repo=repo)


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that are no docstrings, with their lines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


def test_an_error_of_any_length_ends_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise InputError(f"{'n' * 9000} is no file: check the path")

    assert entry.run(fails) == 2
    said = capsys.readouterr().err
    assert len(said) < 2100 and said.endswith("is no file: check the path\n")


def test_no_message_names_a_script_that_a_wheel_does_not_have() -> None:
    repo = Path(__file__).resolve().parents[2]
    scripts = "|".join(name.replace("-", "_") for name in TOOLS)
    found = [
        f"{file.relative_to(repo)}:{line} {text}"
        for folder in ("moco_det", "pretrain", "tools")
        for file in sorted((repo / folder).rglob("*.py"))
        if file.name != "__init__.py"
        for line, text in messages(file)
        if re.search(rf"\b({scripts})\.py\b", text)
    ]
    assert found == []
