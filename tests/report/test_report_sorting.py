"""The page's one script: columns are sorted by what their cells mean."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources

import pytest

SCRIPT = resources.files("moco_det.report") / "templates" / "sort.js"

# A table of one column in place of the browser's.
PAGE = """
const cells = JSON.parse(process.argv[1]);
const element = (text) => ({ nodeType: 1, textContent: text });
const words = (text) => ({ nodeType: 3, textContent: text, data: text });
const cell = (text) => {
  const childNodes = [element(""), words(text), element("a note")];
  return { querySelector: () => null, childNodes, firstChild: childNodes[0] };
};
const rows = cells.map((text) => ({ text, cells: [cell(text)] }));
let click, sorted;
const head = {
  state: null,
  querySelector: () => ({ addEventListener: (event, run) => { click = run; } }),
  getAttribute() { return this.state; },
  setAttribute(name, value) { this.state = value; },
  removeAttribute() { this.state = null; },
};
const body = { rows, append: (...shown) => { sorted = shown.map((row) => row.text); } };
const table = { tBodies: [body], tHead: { rows: [{ cells: [head] }] } };
globalThis.document = { querySelectorAll: () => [table] };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
@pytest.mark.parametrize(
    "descending",
    [
        ["2 h 10 min", "1 h 00 min", "1 min 01 s", "57 s", "0 s"],
        ["2026-11-24T10:20:18+00:00", "2026-11-24T10:14:38+00:00", "2025-12-31T23:59:59+00:00"],
        ["15.0 ± 2.6", "9.2 ± 0.3", "9.1", "0.0 ± 0.0", "−0.4", "–"],
        ["+10.6", "+1.8", "0.0", "−1.2", "−11.7", "–"],
        [">1,000", "309 / 78 / 21", "41 / 11 / 4"],
        ["1.2e−05", "7.6e−06", "0"],
        ["0.54", "0.018", "<0.001"],
        ["df7d3717", "8e12ab", "3e5abc"],
        ["supervised", "moco", "100ep"],
    ],
)
def test_a_column_is_sorted_by_its_values_and_a_third_click_undoes_it(
    descending: list[str],
) -> None:
    order = sorted(descending)
    clicks = "".join("click(); console.log(JSON.stringify(sorted));" for _ in range(3))
    code = f"{PAGE}\n{SCRIPT.read_text('utf-8')}\n{clicks}"
    done = subprocess.run(
        ["node", "-e", code, json.dumps(order)], capture_output=True, text=True, check=True
    )
    first, second, third = map(json.loads, done.stdout.splitlines())
    dashes = [text for text in descending if text == "–"]
    assert first == descending
    assert second == [*reversed([t for t in descending if t != "–"]), *dashes]
    assert third == order
