"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") !== "descending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const a = key(one, column), b = key(other, column);
      if (a !== null && b !== null) return falling ? b - a : a - b;
      if (a !== null || b !== null) return a === null ? 1 : -1;
      const order = one.cells[column].textContent.localeCompare(other.cells[column].textContent);
      return falling ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".opens")) {
  button.addEventListener("click", () => {
    const picture = button.firstElementChild;
    dialog.querySelector("img").src = picture.src;
    dialog.querySelector("img").alt = picture.alt;
    dialog.querySelector("p").textContent = picture.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
