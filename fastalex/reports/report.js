"use strict";
const data = JSON.parse(document.getElementById("report-data").textContent);

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- tables: a click on a column's head sorts by it, another click the other way round

const words = new Intl.Collator(undefined, {numeric: true});

function sort(head) {
  const body = head.closest("table").tBodies[0], rows = [...body.rows];
  const texts = rows.map((row) => row.cells[head.cellIndex].textContent.trim());
  const numeric = texts.every((text) => !Number.isNaN(Number(text)));
  // Numbers start with the highest, names with the first.
  const before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  const order = [...rows.keys()].sort((a, b) => {
    if (!texts[a] || !texts[b]) return !texts[a] - !texts[b];  // empty cells come last
    const difference = numeric ? texts[a] - texts[b] : words.compare(texts[a], texts[b]);
    return descending ? -difference : difference;
  });
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...order.map((index) => rows[index]));
}

for (const button of document.querySelectorAll(".sortable .sort")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}

// --- confusion matrix: a click on a cell shows its images

function showCell(button) {
  const cell = data.cells[button.dataset.cell], panel = button.closest("section").querySelector(".images");
  for (const other of button.closest("table").querySelectorAll("[data-cell]")) other.removeAttribute("aria-pressed");
  button.setAttribute("aria-pressed", "true");
  const shown = cell.images.length, noun = cell.count === 1 ? "image" : "images";
  const part = shown < cell.count ? `, ${shown} of them shown` : "";
  const list = element("ul");
  for (const [row, percent] of cell.images) {
    const item = element("li"), image = element("img");
    image.src = data.images[row];
    image.alt = `an image of ${cell.true} predicted as ${cell.predicted}`;
    image.title = data.files[row];
    item.append(image, element("span", `${percent} %`), element("br"), element("span", data.files[row]));
    list.append(item);
  }
  panel.replaceChildren(element("h4", `${cell.count} ${noun} of ${cell.true} predicted as ${cell.predicted}${part}`), list);
  panel.scrollIntoView({block: "nearest"});
}

for (const button of document.querySelectorAll("[data-cell]")) {
  button.addEventListener("click", () => showCell(button));
}

// --- curves: the values nearest to the pointer

function nearest(line, x) {
  let best = -1;
  line.places.forEach(([place], index) => {
    if (best < 0 || Math.abs(place - x) < Math.abs(line.places[best][0] - x)) best = index;
  });
  return best;
}

function follow(svg, event) {
  const lines = data.charts[Number(svg.dataset.chart)].filter((line) => line.places.length);
  const box = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
  const pointer = (event.clientX - box.left) * width / box.width;
  if (!lines.length) return;
  // All lines tell their value at the place of the validation, or else of the line, that is nearest.
  const leaders = lines.filter((line) => line.kind === "validation");
  const places = (leaders.length ? leaders : lines).map((line) => line.places[nearest(line, pointer)][0]);
  const x = places.reduce((best, place) => Math.abs(place - pointer) < Math.abs(best - pointer) ? place : best);
  const cursor = svg.querySelector(".cursor"), values = svg.parentNode.querySelector(".values");
  cursor.setAttribute("d", `M${x} 12V${svg.viewBox.baseVal.height - 40}`);
  cursor.setAttribute("visibility", "visible");
  values.replaceChildren(...lines.map((line) => {
    const [epoch, value] = line.points[nearest(line, x)];
    const text = element("div", `${line.name}, ${line.kind}, epoch ${epoch}: ${value}`);
    text.className = `run${line.run % 8}`;
    return text;
  }));
  values.hidden = false;
  values.style.left = x < width / 2 ? `${100 * x / width + 2}%` : "";
  values.style.right = x < width / 2 ? "" : `${100 - 100 * x / width + 2}%`;
}

for (const svg of document.querySelectorAll("[data-chart]")) {
  svg.addEventListener("pointermove", (event) => follow(svg, event));
  svg.addEventListener("pointerdown", (event) => follow(svg, event));
  svg.addEventListener("pointerleave", () => {
    svg.querySelector(".cursor").setAttribute("visibility", "hidden");
    svg.parentNode.querySelector(".values").hidden = true;
  });
}

// --- on paper everything is unfolded

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
