"use strict";
// Sorting, filtering and enlarging. Without it the page is whole: it adds controls and hides nothing by itself.

const FEW = 5; // rows that need no filter
const NEXT = { none: "ascending", ascending: "descending", descending: "none" }; // orders of a column, click by click
const INSIDE = ["indistinguishable", "equivalent", "unknown"]; // classes of rows that say no difference

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The first number of a cell: of "+0.0123 [+0.0046, +0.0200]" 0.0123, of "12,345" 12345; null where there is none.
function numberOf(text) {
  const found = text.replace(/(\d),(?=\d{3})/g, "$1").replace("∞", "Infinity").match(/[-+]?(Infinity|\d+\.?\d*(e[-+]?\d+)?)/i);
  return found ? Number(found[0]) : null;
}

function compareText(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

// What a cell is sorted by: the number that it carries, else the first in its text, or its text.
function keyOf(cell, numeric) {
  if (numeric && cell.dataset.value) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return numeric ? numberOf(text) : text || null;
}

// Rows in the order of a column; cells without a value stay at the end, whichever way.
function sorted(rows, index, numeric, direction) {
  const keyed = rows.map((row) => ({ row, key: keyOf(row.cells[index], numeric) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return direction * (numeric ? a.key - b.key || 0 : compareText(a.key, b.key));
  });
  return keyed.map((each) => each.row);
}

// The rows of a group that are no heading of it.
function dataRows(body) {
  return [...body.rows].filter((row) => !row.classList.contains("group"));
}

// Headings become buttons: ascending, descending, and the order that the table came in; in each group by itself.
function makeSortable(table) {
  const original = [...table.tBodies].map((body) => [body, dataRows(body)]);
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    const button = element("button", { type: "button" }, ...heading.childNodes);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = NEXT[heading.getAttribute("aria-sort") ?? "none"];
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      if (next !== "none") heading.setAttribute("aria-sort", next);
      const numeric = !heading.classList.contains("l") && !heading.classList.contains("left");
      const direction = next === "ascending" ? 1 : -1;
      for (const [body, rows] of original) body.append(...(next === "none" ? rows : sorted(rows, index, numeric, direction)));
    });
  });
}

// A text box, and where rows have verdicts a box to hide those that say no difference.
function makeFilterable(table) {
  const rows = [...table.tBodies].flatMap(dataRows);
  const groups = [...table.querySelectorAll("tr.group")];
  const isInside = (row) => INSIDE.some((name) => row.classList.contains(name));
  const verdicts = rows.some((row) => row.classList.contains("better") || row.classList.contains("worse") || isInside(row));
  if (rows.length <= FEW && !verdicts) return;
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const box = element("input", { type: "search", autocomplete: "off" });
  const toggle = element("input", { type: "checkbox" });
  const count = element("output", {});
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => {
      row.hidden = (toggle.checked && isInside(row)) || !words.every((word) => texts[i].includes(word));
    });
    for (const group of groups) group.hidden = dataRows(group.parentElement).every((row) => row.hidden);
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
  };
  box.addEventListener("input", apply);
  toggle.addEventListener("change", apply);
  table.addEventListener("reveal", () => {
    box.value = "";
    toggle.checked = false;
    apply();
  });
  const controls = element("div", { className: "controls" });
  controls.append(element("label", {}, "Filter ", box));
  if (verdicts) controls.append(element("label", {}, toggle, "hide what is inside the noise"));
  controls.append(count);
  table.closest(".scroll").before(controls);
  apply();
}

// What a link leads to is shown, though a filter had hidden it or it is folded away.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  if (target.hidden) target.closest("table").dispatchEvent(new Event("reveal"));
  target.scrollIntoView({ block: target.tagName === "TR" ? "center" : "start" });
}

function makeEnlargeable(figure, dialog) {
  const image = figure.querySelector("img");
  const button = element("button", { type: "button", title: "Enlarge" });
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => {
    dialog.querySelector("img").replaceWith(image.cloneNode());
    dialog.querySelector("p").textContent = figure.querySelector("figcaption").textContent;
    dialog.showModal();
  });
}

function addDialog() {
  const close = element("button", { type: "button" }, "Close");
  const dialog = element("dialog", {}, close, element("img", { alt: "" }), element("p", { className: "note" }));
  dialog.setAttribute("aria-label", "Figure");
  close.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  return dialog;
}

document.querySelectorAll("table").forEach((table) => {
  if ([...table.tBodies].flatMap(dataRows).length > 1) {
    makeSortable(table);
    makeFilterable(table);
  }
});
const figures = document.querySelectorAll("figure");
if (figures.length) {
  const dialog = addDialog();
  figures.forEach((figure) => makeEnlargeable(figure, dialog));
}
window.addEventListener("hashchange", reveal);
window.addEventListener("beforeprint", () => document.querySelectorAll("details:not(.trials)").forEach((each) => (each.open = true)));
reveal();
