// How figures are written, the elements that show them, and the last minutes of each. Knows nothing of what they mean.

const MINUTES = 5;
const LEAST_MS = 60000; // shown by a line, so that it does not look like another one each second at first
const opened = Date.now();
const SVG = "http://www.w3.org/2000/svg";

export const NONE = "–"; // what a cell shows that has nothing to say

export function rate(number) {
  if (!number) return "0";
  if (number >= 10000) return `${(number / 1000).toFixed(1)}k`;
  return number >= 100 ? number.toFixed(0) : number.toFixed(1);
}

export function time(ms) {
  if (!ms) return "0 ms";
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10000 ? 0 : 1)} s`;
  return `${ms.toFixed(ms >= 100 ? 0 : ms >= 1 ? 1 : 2)} ms`;
}

export function span(latency = {}) {
  return `${time(latency.p50_ms)} · ${time(latency.p99_ms)}`;
}

export function size(bytes) {
  if (!bytes) return "0 B";
  const power = Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  const number = bytes / 1024 ** power;
  return `${number.toFixed(number < 10 && power > 1 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

export function duration(seconds) {
  const s = Math.floor(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

export const count = (number) => (number ?? 0).toLocaleString("en").replaceAll(",", " ");
export const percent = (share) => `${Math.round(100 * (share ?? 0))} %`;
export const sum = (numbers) => numbers.reduce((total, number) => total + (number ?? 0), 0);

/** An element: `what` is its tag, with classes behind dots. Text of anybody's is only ever text. */
export function make(what, ...inside) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  element.append(...inside);
  return element;
}

export function write(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (value === undefined || value === "") element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) mark(element, name, value);
  return element;
}

/** Make the children of `parent` those of `items`, in order: elements stay what they are, so that whoever reads,
 *  selects or hovers is not disturbed. `born` makes one, `update` fills it. */
export function keyed(parent, items, keyOf, born, update) {
  const known = parent.known ??= new Map();
  const wanted = new Set();
  items.forEach((item, index) => {
    const key = keyOf(item, index);
    let element = known.get(key);
    if (!element) known.set(key, element = born(item));
    wanted.add(key);
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
    update(element, item, index);
  });
  for (const [key, element] of known) {
    if (!wanted.has(key)) {
      element.remove();
      known.delete(key);
    }
  }
}

/** A table that is filled again and again. `columns`: [title, class, cell => text or node]. */
export function table(place, columns, items, keyOf, empty) {
  if (!place.body) {
    const head = make("tr", ...columns.map(([title, kind]) => make(kind ? `th.${kind}` : "th", title)));
    for (const cell of head.children) cell.scope = "col";
    place.body = make("tbody");
    place.table = make("table", make("thead", head), place.body);
    place.empty = make("p.empty", empty);
    place.append(place.table, place.empty);
  }
  place.table.hidden = !items.length;
  place.empty.hidden = items.length > 0;
  keyed(place.body, items, keyOf, () => make("tr", ...columns.map(([title, kind]) => {
    const cell = make(kind ? `td.${kind}` : "td");
    cell.dataset.label = title;
    return cell;
  })), (row, item) => columns.forEach(([, , fill], index) => {
    const shown = fill(item, row.children[index]);
    if (shown !== undefined) write(row.children[index], shown);
    row.children[index].classList.toggle("none", shown === NONE);
  }));
}

const series = new Map();

/** Remember a figure of this instant. */
export function note(name, value, now) {
  const points = series.get(name) ?? series.set(name, []).get(name);
  points.push([now, value ?? 0]);
  while (points[0][0] < now - MINUTES * 60000) points.shift();
}

export function forget(now) {
  for (const [name, points] of series) if (points.at(-1)[0] < now - MINUTES * 60000) series.delete(name);
}

export function sparkline(kind = "") {
  const element = svg("svg", { viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": "true" });
  element.setAttribute("class", `spark ${kind}`);
  element.append(svg("path", { class: "under" }), svg("path", { class: "run" }));
  return element;
}

/** Draw a series; where nothing was known for a while there is a gap. */
export function draw(element, name, now, least = 0) {
  const points = series.get(name) ?? [];
  const most = Math.max(least, ...points.map(([, value]) => value)) || 1;
  const shown = Math.min(Math.max(now - opened, LEAST_MS), MINUTES * 60000), from = now - shown;
  let run = "", under = "", former = 0, last = 0;
  const place = ([at, value]) => [(100 * (at - from)) / shown, 25 - 23 * (value / most)];
  for (const point of points) {
    const [x, y] = place(point);
    const gap = point[0] - former > 8000;
    if (gap && former) under += `L${last.toFixed(2)} 26Z`;
    run += `${gap ? "M" : "L"}${x.toFixed(2)} ${y.toFixed(2)}`;
    under += gap ? `M${x.toFixed(2)} 26L${x.toFixed(2)} ${y.toFixed(2)}` : `L${x.toFixed(2)} ${y.toFixed(2)}`;
    former = point[0];
    last = x;
  }
  if (former) under += `L${last.toFixed(2)} 26Z`;
  mark(element.children[0], "d", under);
  mark(element.children[1], "d", run);
}
