"use strict";
document.querySelector("button.theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), column = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows], value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => a.localeCompare(b, undefined, { numeric: true });
    const compare = (a, b) => isNaN(a) || isNaN(b) ? order(a, b) : a - b;
    rows.sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
    table.tBodies[0].append(...rows);
  });
}
