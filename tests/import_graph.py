"""Who imports whom, read from sources with `ast`: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Sources = Mapping[str, str]  # dotted module name -> its text


def inside(module: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@dataclass(frozen=True)
class Import:
    """One import statement's target: `target` is a module of the sources or a foreign name."""

    importer: str
    target: str
    line: int
    at_import: bool  # runs when the importer is imported, not when one of its functions is called


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def read_imports(sources: Sources) -> list[Import]:
    """All imports of all modules; those under TYPE_CHECKING never run and are left out."""
    found: list[Import] = []
    packages = {name.rpartition(".")[0] for name in sources} | {
        name for name in sources if any(other.startswith(f"{name}.") for other in sources)
    }

    def targets(node: ast.Import | ast.ImportFrom, module: str) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = node.module or ""
        if node.level:
            home = module.split(".") if module in packages else module.split(".")[:-1]
            home = home[: len(home) - node.level + 1]
            base = ".".join([*home, *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        # `from a import b` needs a.b where that is a module, else something written in a.
        foreign = base.split(".")[0] not in {name.split(".")[0] for name in sources}
        return names if foreign else [n if n in sources or n in packages else base for n in names]

    def visit(node: ast.AST, module: str, at_import: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(
                Import(module, target, node.lineno, at_import) for target in targets(node, module)
            )
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for branch in node.orelse:
                visit(branch, module, at_import)
        else:
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, module, at_import and not lazy)

    for name, text in sources.items():
        visit(ast.parse(text), name, True)
    return found


def forbidden(sources: Sources, who: Iterable[str], what: Iterable[str]) -> list[str]:
    """Imports written in `who`, lazy ones included, that name something in `what`."""
    who, what = tuple(who), tuple(what)
    return [
        f"{one.importer}:{one.line} imports {one.target}"
        for one in read_imports(sources)
        if inside(one.importer, who) and inside(one.target, what)
    ]


def reaches(sources: Sources, who: Iterable[str], what: Iterable[str]) -> list[str]:
    """Chains of imports, lazy ones included, that lead from `who` to something in `what`."""
    who, what = tuple(who), tuple(what)
    edges: dict[str, set[str]] = {}
    for one in read_imports(sources):
        edges.setdefault(one.importer, set()).add(one.target)
    chains = []
    for start in sorted(name for name in sources if inside(name, who)):
        queue, seen = [[start]], {start}
        while queue:
            chain = queue.pop(0)
            if inside(chain[-1], what):
                chains.append(" -> ".join(chain))
                break
            # importing a.b.c runs a and a.b first
            parts = chain[-1].split(".")
            parents = {".".join(parts[:i]) for i in range(1, len(parts))} & set(sources)
            for target in sorted(edges.get(chain[-1], set()) | parents):
                if target not in seen:
                    seen.add(target)
                    queue.append([*chain, target])
    return chains


def cycles(sources: Sources) -> list[str]:
    """Import cycles among the modules, by the imports that run when a module is imported."""
    edges: dict[str, set[str]] = {name: set() for name in sources}
    for one in read_imports(sources):
        if one.at_import and one.target in sources and one.target != one.importer:
            edges[one.importer].add(one.target)
    found: list[str] = []
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append(" -> ".join([*trail[trail.index(node) :], node]))
        elif node not in done:
            for target in sorted(edges[node]):
                walk(target, [*trail, node])
            done.add(node)

    for name in sorted(sources):
        walk(name, [])
    return found
