for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = [...body.rows].some((row) => typeof key(row, column) === "number");
    const first = isNumber ? "descending" : "ascending";
    const other = isNumber ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === "" || y === "") return (x === "") - (y === ""); // What is missing comes last.
      return sign * (isNumber ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
  }));
}
for (const toggles of document.querySelectorAll(".toggles")) {
  const table = document.getElementById(toggles.dataset.table);
  toggles.hidden = false;
  for (const button of toggles.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const cell of table.querySelectorAll(`[data-band="${button.dataset.band}"]`)) {
        cell.hidden = !shown;
      }
    });
  }
}
