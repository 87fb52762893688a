"use strict";
// Sorting and filtering of the tables; the page is complete without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  for (const head of table.tHead.rows[0].cells) {
    if (!head.dataset.type) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(head));
  }

  // First click: numbers from the largest, text from A; second: reversed; third: the page's own order.
  function sort(head) {
    const down = head.dataset.type === "number" ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = [null, ...down, null][[null, ...down].indexOf(head.getAttribute("aria-sort")) + 1];
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    body.append(...(next ? [...original].sort(order(head, next === "ascending" ? 1 : -1)) : original));
  }

  function order(head, sign) {
    const value = (row) => {
      const cell = row.cells[head.cellIndex];
      if (head.dataset.type !== "number") return cell.textContent.trim();
      return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    };
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what was not measured comes last
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
    };
  }
}

for (const form of document.querySelectorAll("form.filter")) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  const apply = () => {
    const { status, stage, kind, text } = form.elements;
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = (!status.value || row.dataset.status === status.value) && (!stage.value || row.dataset.stage === stage.value) &&
        (!kind.value || row.dataset.kind === kind.value) && row.textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
}
