// Sorts each table by the heading that is clicked: the worst first, then the other way round.
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const turned = { ascending: "descending", descending: "ascending" };

  // A number, null where there is none, or text.
  function valueOf(cell) {
    const { value } = cell.dataset;
    if (value === undefined) return cell.textContent;
    return value === "" ? null : Number(value);
  }

  function compare(a, b) {
    if (a === null || b === null) return 0;
    return typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  }

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.closest("th");
    const first = head.dataset.worst === "high" ? "descending" : "ascending";
    const direction = head.getAttribute("aria-sort") === first ? turned[first] : first;
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    // Pairs without results have one cell and stay on top; values that do not exist come last.
    const keyed = [...body.rows].map((row) => {
      const whole = row.cells.length > 1;
      const value = whole ? valueOf(row.cells[heads.indexOf(head)]) : null;
      return { row, value, group: whole ? 1 + (value === null) : 0 };
    });
    keyed.sort((a, b) => a.group - b.group || sign * compare(a.value, b.value));
    body.append(...keyed.map(({ row }) => row));
  });
}
