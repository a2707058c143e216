"use strict";
// Sorts a table by a column: numbers by value, words by the alphabet, dashes last. A third click
// gives the first order back.
const UNITS = { h: 3600, min: 60, s: 1 };
const read = (cell) => {
  // Before the words may stand a swatch, after them a note: neither is what the cell says.
  const words = Array.from(cell.childNodes).find((node) => node.nodeType === 3 && node.data.trim());
  const first = cell.querySelector("code") || words;
  const text = (first ? first.textContent : "").trim();
  if (/^(\d+ (h|min|s)( |$))+$/.test(text)) {
    const parts = text.matchAll(/(\d+) (h|min|s)/g);
    return { text, number: Array.from(parts).reduce((sum, [, n, unit]) => sum + n * UNITS[unit], 0) };
  }
  const plain = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").replace(/^[<>+]/, "");
  // Dates, hashes and names that begin with a digit are words.
  const whole = /^-?(\d+\.?\d*|\.\d+)(e-?\d+)?(?=$| )/.exec(plain);
  return { text, number: whole ? parseFloat(whole[0]) : NaN };
};
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const original = Array.from(body.rows);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === "descending" ? "ascending" : now ? null : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const rows = next ? original.map((row) => [read(row.cells[column]), row]) : [];
      rows.sort(([a], [b]) => {
        if (isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1;
        return sign * (isNaN(a.number) ? a.text.localeCompare(b.text) : a.number - b.number);
      });
      body.append(...(next ? rows.map(([, row]) => row) : original));
    });
  });
}
