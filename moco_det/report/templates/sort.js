"use strict";
// Sorts a table by a column: numbers by value, words by the alphabet, dashes last. A third click
// gives the first order back.
const read = (cell) => {
  const first = cell.querySelector("code") || cell.firstChild;
  const text = (first ? first.textContent : "").trim();
  const plain = text.replace(/−/g, "-").replace(/,(?=\d{3})/g, "").replace(/^[<>+]/, "");
  return { text, number: /^-?[\d.]/.test(plain) ? parseFloat(plain) : NaN };
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
