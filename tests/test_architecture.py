"""The rules of docs/architecture.md, read from the source with `ast`: nothing is imported.

Every checker is a function from sources to a list of faults, and is shown to find a fault in a
small bad example before it is turned on the project.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.import_graph import Sources, cycles, forbidden, inside, reaches, read_imports

REPO = Path(__file__).resolve().parent.parent
# package -> its folder; tools/ is installed as moco_det_tools
PACKAGES = {"moco_det": "moco_det", "pretrain": "pretrain", "moco_det_tools": "tools"}
ENGINES = ("moco_det.plugin", "moco_det.standalone")
WITHOUT_ENGINE = (
    "moco_det.weights",
    "moco_det.resnet",
    "moco_det.data",
    "moco_det.scoring",
    "moco_det.results",
    "moco_det.report",
)
# report reads data and scoring, so that a laptop can make it again they stay without torch too
WITHOUT_TORCH = tuple(f"moco_det.{package}" for package in ("results", "report", "data", "scoring"))
TORCH = ("torch", "torchvision", "fvcore", "detectron2", "safetensors.torch")
BAD_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}


def project_sources() -> dict[str, str]:
    """Every module of the project; a package's text stands under the package's own name."""
    sources = {}
    for package, folder in PACKAGES.items():
        files = sorted((REPO / folder).rglob("*.py"))
        assert len(files) > 1, f"{folder}/ holds no modules"
        for file in files:
            parts = [package, *file.relative_to(REPO / folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = file.read_text(encoding="utf-8")
    return sources


PROJECT = project_sources()


def bad_names(sources: Sources) -> list[str]:
    """Modules whose name says nothing."""
    return [name for name in sources if BAD_NAMES & {part.strip("_") for part in name.split(".")}]


def dynamic_dispatch(sources: Sources) -> list[str]:
    """Choices made by a computed attribute name, by `__dict__[...]` or by `globals()`."""
    found = []
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                bad = len(node.args) < 2 or not isinstance(node.args[1], ast.Constant)
            elif isinstance(node, ast.Subscript):
                table = ast.unparse(node.value)
                bad = table.endswith(".__dict__") or table in ("globals()", "vars()", "locals()")
            else:
                continue
            if bad:
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    return found


def kwargs_chains(sources: Sources) -> list[str]:
    """Calls that hand a function's own `**kwargs` to a function that takes `**kwargs` again."""
    takers = {
        node.name
        for text in sources.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.args.kwarg
    }
    found = []
    for name, text in sources.items():
        for function in ast.walk(ast.parse(text)):
            if not (isinstance(function, ast.FunctionDef) and function.args.kwarg):
                continue
            for call in ast.walk(function):
                if (
                    isinstance(call, ast.Call)
                    and ast.unparse(call.func).split(".")[-1] in takers
                    and any(
                        word.arg is None and ast.unparse(word.value) == function.args.kwarg.arg
                        for word in call.keywords
                    )
                ):
                    found.append(f"{name}:{call.lineno} {ast.unparse(call)}")
    return found


def shared_class_names(sources: Sources) -> list[str]:
    """Classes of one name in two modules."""
    homes: dict[str, list[str]] = {}
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    return [f"{cls}: {', '.join(found)}" for cls, found in homes.items() if len(found) > 1]


def too_long(sources: Sources, limit: int = 400) -> list[str]:
    return [
        f"{name}: {lines} lines"
        for name, text in sources.items()
        if (lines := len(text.splitlines())) > limit
    ]


def unmarked_detectron2(sources: Sources) -> list[str]:
    """Test or benchmark files that import detectron2 without being marked or able to skip."""
    ways = ("mark.detectron2", 'importorskip("detectron2")', 'find_spec("detectron2") is None')
    faults = []
    for name in sorted({one.split(":")[0] for one in forbidden(sources, sources, ["detectron2"])}):
        if not any(way in sources[name] for way in ways):
            faults.append(f"{name} imports detectron2 and is not marked for it")
    return faults


def tools_without_main(sources: Sources) -> list[str]:
    """Tools that lack `def main(argv...)` or do not end in the one way of reporting bad input."""
    faults = []
    for name, text in sources.items():
        functions = {n.name: n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}
        if "main" not in functions or [a.arg for a in functions["main"].args.args[:1]] != ["argv"]:
            faults.append(f"{name} has no main(argv)")
        if 'if __name__ == "__main__":' not in text or "raise SystemExit(" not in text:
            faults.append(f"{name} does not end with raise SystemExit(...)")
    return faults


def other_packages(sources: Sources) -> list[str]:
    """The packages of moco_det that pre-training has no part in."""
    shared = ("moco_det.foundation", "moco_det.data")
    packages = {".".join(name.split(".")[:2]) for name in sources if name.startswith("moco_det.")}
    return sorted(packages.difference(shared))


# A package imports only packages that stand in a line before its own.
ORDER = (
    ("foundation",),
    ("data", "resnet", "results", "timm_backbones"),
    ("weights", "scoring"),
    ("settings",),
    ("report",),
    ("standalone", "plugin"),
    ("runs",),
    ("doctor",),
)


def upward(sources: Sources) -> list[str]:
    """Imports of a package of moco_det that does not stand before the importer's own in ORDER."""
    rank = {f"moco_det.{name}": i for i, line in enumerate(ORDER) for name in line}
    faults = []
    for one in read_imports(sources):
        above, below = (".".join(n.split(".")[:2]) for n in (one.importer, one.target))
        if above != below and above in rank and rank.get(below, -1) >= rank[above]:
            faults.append(f"{one.importer}:{one.line} imports {one.target}")
    return faults


def loose_modules(sources: Sources) -> list[str]:
    """Modules of moco_det that lie in no package, and packages that ORDER does not name."""
    known = [f"moco_det.{name}" for line in ORDER for name in line]
    return [n for n in sources if n.startswith("moco_det.") and not inside(n, known)]


Checker = Callable[[Sources], list[str]]
# name -> (checker, sources that break the rule, sources that keep it)
RULES: dict[str, tuple[Checker, Sources, Sources]] = {
    "1 pretrain imports only foundation and data of moco_det": (
        lambda s: forbidden(s, ["pretrain"], [*other_packages(s), "moco_det_tools"]),
        {"pretrain.train": "def f():\n    from moco_det.weights import a", "moco_det.weights": ""},
        {"pretrain.train": "from moco_det.data import records\nimport moco_detector"},
    ),
    "1 moco_det never imports pretrain": (
        lambda s: forbidden(s, ["moco_det"], ["pretrain", "moco_det_tools"]),
        {"moco_det": "import pretrain.losses as l"},
        {"moco_det": "import pretrained"},
    ),
    "2 detectron2 only in plugin": (
        lambda s: forbidden(
            {n: t for n, t in s.items() if not inside(n, ["moco_det.plugin"])}, s, ["detectron2"]
        ),
        {"moco_det.plugin": "", "moco_det.data": "try:\n    import detectron2\nexcept E: pass"},
        {"moco_det.plugin": "", "moco_det.plugin.heads": "from detectron2 import layers"},
    ),
    "3 plugin never imports standalone": (
        lambda s: reaches(s, [ENGINES[0]], [ENGINES[1]]),
        {
            "moco_det": "",
            "moco_det.plugin.heads": "from ..config import a",
            "moco_det.config": "from moco_det.standalone import b",
            "moco_det.standalone": "b = 1",
        },
        {
            "moco_det": "",
            "moco_det.plugin": "from moco_det import settings",
            "moco_det.settings": "",
        },
    ),
    "3 standalone never imports plugin": (
        lambda s: reaches(s, [ENGINES[1]], [ENGINES[0]]),
        {"moco_det": "", "moco_det.plugin": "", "moco_det.standalone": "from . import plugin"},
        {"moco_det": "", "moco_det.plugin": "", "moco_det.standalone": "from . import data"},
    ),
    "4 the packages around the engines import neither": (
        lambda s: reaches(s, WITHOUT_ENGINE, ENGINES),
        {
            "moco_det.data": "from moco_det.results.matched import a",
            "moco_det.results.matched": "def a():\n    import moco_det.standalone.train",
        },
        {"moco_det.data": "import moco_det.resnet", "moco_det.resnet": "", "moco_det.plugin": ""},
    ),
    "4 results and report never reach torch": (
        lambda s: reaches(s, WITHOUT_TORCH, TORCH),
        {"moco_det.report.page": "import moco_det.a", "moco_det.a": "from torch.nn import Conv2d"},
        {"moco_det.report": "if TYPE_CHECKING:\n    import torch", "moco_det.a": "import torch"},
    ),
    "5 timm, an extra, is imported where it is asked for alone": (
        lambda s: [
            f"{one.importer}:{one.line} imports {one.target}"
            for one in read_imports(s)
            if one.at_import and inside(one.target, ["timm"])
        ],
        {"moco_det.a": "from timm.models import group_parameters"},
        {"moco_det.a": "def f():\n    import timm"},
    ),
    "5 no arrow that runs upward": (
        upward,
        {"moco_det.data.a": "def f():\n    from moco_det.weights import b", "moco_det.weights": ""},
        {"moco_det.weights.a": "from moco_det.data import b", "moco_det.data": ""},
    ),
    "5 moco_det holds the packages of the order alone": (
        loose_modules,
        {"moco_det": "", "moco_det.config": ""},
        {"moco_det": "", "moco_det.runs.row": ""},
    ),
    "5 no import cycle": (
        cycles,
        {"moco_det.a": "from moco_det import b", "moco_det.b": "import moco_det.a"},
        {"moco_det.a": "from moco_det import b", "moco_det.b": "def f():\n    import moco_det.a"},
    ),
    "5 no module called utils, misc, common, helpers": (
        bad_names,
        {"moco_det.data._utils": ""},
        {"moco_det.data.records": ""},
    ),
    # moco_det/__init__.py resolves its table of public names, and is the one place that does
    "6 no dispatch by getattr or __dict__": (
        lambda s: dynamic_dispatch({n: t for n, t in s.items() if n != "moco_det"}),
        {"moco_det.a": "import models\nbuild = models.__dict__[name]()"},
        {"moco_det.a": "x = getattr(record, 'mask', None)"},
    ),
    "6 no **kwargs through more than one call": (
        kwargs_chains,
        {"moco_det.a": "def f(**kw):\n    g(**kw)\ndef g(**kw):\n    h(**kw)"},
        {"moco_det.a": "def f(**kw):\n    h(**kw)\ndef h(a, b): ..."},
    ),
    "10 a class name stands once": (
        shared_class_names,
        {"moco_det.a": "class A: ...", "pretrain.b": "def f():\n    class A: ..."},
        {"moco_det.a": "class A: ...", "pretrain.b": "class B: ..."},
    ),
    "10 no tool is longer than 150 lines": (
        lambda s: too_long({n: t for n, t in s.items() if inside(n, ["moco_det_tools"])}, 150),
        {"moco_det_tools.a": "a = 1\n" * 151},
        {"moco_det_tools.a": "a = 1\n" * 150, "moco_det.b": "b = 1\n" * 151},
    ),
    "no file is longer than 400 lines": (
        too_long,
        {"moco_det.a": "a = 1\n" * 401},
        {"moco_det.a": "a = 1\n" * 400},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_project_keeps_the_rule(rule: str) -> None:
    checker, _, _ = RULES[rule]
    assert checker(PROJECT) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_seen_and_a_kept_one_is_not(rule: str) -> None:
    checker, bad, good = RULES[rule]
    assert checker({name: textwrap.dedent(text) for name, text in bad.items()})
    assert checker({name: textwrap.dedent(text) for name, text in good.items()}) == []


def test_getattr_with_a_computed_name_is_seen() -> None:
    assert dynamic_dispatch({"a": "getattr(torchvision.models, arch)()"})


@pytest.mark.parametrize(
    "package", [*WITHOUT_ENGINE, "moco_det.standalone", "moco_det.results.matched"]
)
def test_every_package_that_the_rules_name_exists(package: str) -> None:
    assert package in PROJECT


def test_every_tool_has_one_main_and_one_way_to_end() -> None:
    doors = {
        name: text
        for name, text in PROJECT.items()
        if inside(name, ["moco_det_tools"])
        and name.count(".") == 1
        and not name.endswith((".entry", ".matrix_options"))
    }
    assert len(doors) >= 6
    assert tools_without_main({"t": "def main():\n    pass"}) != []
    assert tools_without_main(doors) == []


def test_tests_and_benchmarks_that_import_detectron2_are_marked_for_it() -> None:
    files = [file for folder in ("tests", "benchmarks") for file in (REPO / folder).rglob("*.py")]
    assert files
    assert unmarked_detectron2({"t": "import detectron2.config"}) != []
    skips = 'if find_spec("detectron2") is None:\n    raise SystemExit\nimport detectron2'
    assert unmarked_detectron2({"t": skips}) == []
    sources = {str(file.relative_to(REPO)): file.read_text(encoding="utf-8") for file in files}
    assert unmarked_detectron2(sources) == []
