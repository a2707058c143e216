"""Lines of code per package: blank lines, comments and docstrings are not counted.

    python benchmarks/code_lines.py [--files]

Prints files, lines of code and all lines of every package of moco_det, of pretrain and of tools.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def code_lines(text: str) -> int:
    """Lines of a Python source that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, (first.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="one line per file (default: package)")
    args = parser.parse_args(argv)
    rows: dict[str, list[int]] = {}
    for folder in ("moco_det", "pretrain", "tools"):
        for file in sorted((REPO / folder).rglob("*.py")):
            path = file.relative_to(REPO)
            deep = 2 if folder == "moco_det" and len(path.parts) > 2 else 1
            name = str(path) if args.files else "/".join(path.parts[:deep])
            text = file.read_text(encoding="utf-8")
            numbers = (1, code_lines(text), len(text.splitlines()))
            rows[name] = [a + b for a, b in zip(rows.get(name, [0, 0, 0]), numbers, strict=True)]
    rows["total"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    width = max(map(len, rows))
    print(f"{'':<{width}}  files    code     all")
    for name, (files, code, lines) in rows.items():
        print(f"{name:<{width}}  {files:>5}  {code:>6}  {lines:>6}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
