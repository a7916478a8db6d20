"use strict";
(() => {
  const root = document.documentElement;
  const button = document.querySelector(".theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  button.hidden = false;
  name();

  const map = document.querySelector(".map");
  const told = document.querySelector(".told");
  if (!map || !told) return;
  const rows = [...map.tBodies[0].rows].map((row) => [...row.querySelectorAll("td[title]")]);
  const hint = told.textContent;
  let here = null;
  const tell = (cell) => {
    if (here) { here.classList.remove("here"); here.tabIndex = -1; }
    here = cell;
    here.classList.add("here");
    here.tabIndex = 0;
    told.textContent = here.dataset.detail;
  };
  for (const cell of rows.flat()) {
    cell.dataset.detail = cell.title;
    cell.removeAttribute("title");
    cell.tabIndex = -1;
  }
  if (rows.length && rows[0].length) rows[0][0].tabIndex = 0;
  map.setAttribute("role", "grid");
  const cellOf = (event) => event.target.closest("td[data-detail]");
  map.addEventListener("mouseover", (event) => { const cell = cellOf(event); if (cell) tell(cell); });
  map.addEventListener("focusin", (event) => { const cell = cellOf(event); if (cell) tell(cell); });
  map.addEventListener("click", (event) => { const cell = cellOf(event); if (cell) cell.focus(); });
  map.addEventListener("mouseleave", () => {
    if (!here || here === document.activeElement) return;
    here.classList.remove("here");
    told.textContent = hint;
  });
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  map.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    const step = steps[event.key];
    if (!cell || !step) return;
    const row = rows.findIndex((found) => found.includes(cell));
    const next = (rows[row + step[0]] || [])[rows[row].indexOf(cell) + step[1]];
    if (next) { next.focus(); event.preventDefault(); }
  });
})();
