// Asks `data` beside this page once a second while somebody looks, and shows what it says.

import { NONE, count, draw, duration, forget, keyed, make, mark, note, percent, rate, size, sparkline, sum, table, time, write } from "./figures.js";
import { Picture, colour, isMissing } from "./picture.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000; // for an answer
const SLOWER_MS = 10000; // at most between two tries while there is none

const at = (id) => document.getElementById(id);
const picture = new Picture(at("picture"));
let answered = 0; // when, by this browser's clock
let failed = 0; // tries in a row
let timer = 0;

// --- the loop --------------------------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  let trouble = "";
  try {
    const answer = await fetch("data", { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
    if (answer.ok) {
      const told = await answer.json();
      if (told.error) trouble = `The broker says: ${told.error}`;
      else show(told);
    } else if (answer.status === 503) trouble = "The broker does not answer; requests wait for it, or are refused.";
    else if (answer.status === 429) trouble = answered ? "" : "Too many look at this page; waiting for a turn.";
    else trouble = `This page may not be seen from here any more (${answer.status}).`;
  } catch {
    trouble = "The server of this page does not answer.";
  }
  failed = trouble ? failed + 1 : 0;
  complain(trouble);
  if (!document.hidden) timer = setTimeout(look, Math.min(EVERY_MS * 2 ** Math.min(failed, 5), failed ? SLOWER_MS : EVERY_MS));
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});

/** Say what is wrong, once: a reader of the screen is told only when it changes. */
function complain(trouble) {
  const since = trouble && answered ? ` What is shown is from ${new Date(answered).toLocaleTimeString()}.` : "";
  write(at("trouble"), trouble && trouble + since);
  at("trouble").hidden = !trouble;
  at("main").classList.toggle("stale", Boolean(trouble));
  if (trouble) standing("no answer", "bad");
}

function standing(words, kind) {
  write(at("standing"), words);
  at("standing").className = `pill ${kind}`;
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function show(told) {
  const now = answered = Date.now();
  at("main").hidden = false;
  document.title = `${told.name} - Stageline`;
  write(at("name"), told.name);
  const missing = told.stages.filter(isMissing);
  const absent = (told.cells ?? 1) - (told.cells_answering ?? told.cells ?? 1);
  if (told.draining) standing("draining", "warn");
  else if (missing.length) standing(`not ready: ${missing.map((stage) => stage.name).join(", ")}`, "bad");
  else if (absent) standing(`${absent} of ${told.cells} cells silent`, "warn");
  else standing("serving", "good");
  const brokers = told.brokers ?? [];
  const unique = (values) => [...new Set(values.filter(Boolean))];
  write(at("about"), [
    `up for ${duration(told.uptime_s)}`,
    ...unique((told.frontends ?? []).map((one) => one.url)),
    (told.cells ?? 1) > 1 ? `${told.cells} cells` : "",
    ...unique(brokers.map((one) => one.version && `version ${one.version}`)),
    ...unique(brokers.map((one) => one.log && `log: ${one.log}`)),
  ].filter(Boolean).join("  ·  "));
  showFigures(told, now);
  picture.show(told, now);
  showRoutes(told.routes ?? [], now);
  showRefused(told);
  showFailures(told.errors ?? []);
  showHosts(told);
  forget(now);
}

function showFigures(told, now) {
  const rates = told.rates ?? {}, routes = told.routes ?? [];
  const worst = Math.max(0, ...routes.map((route) => route.p99_ms ?? 0));
  const tiles = [
    ["answered", rate(rates.answered_s), "/s", rates.answered_s, ""],
    ["p99 of the slowest route", ...time(worst).split(" "), worst, ""],
    ["under way", count(told.admitted), `of ${count(told.capacity)}`, told.admitted, ""],
    ["waiting in queues", count(sum(told.stages.map((stage) => stage.queued))), "", sum(told.stages.map((stage) => stage.queued)), ""],
    ["failed", rate(rates.failed_s), "/s", rates.failed_s, "bad"],
    ["refused", rate(rates.refused_s), "/s", rates.refused_s, "warn"],
  ];
  keyed(at("figures"), tiles, ([what]) => what, ([what, , , , kind]) => {
    const tile = make("div.tile", make("div.what", what), make("div.figure"), sparkline(kind));
    tile.figure = make("span");
    tile.unit = make("small");
    tile.children[1].append(tile.figure, tile.unit);
    return tile;
  }, (tile, [what, figure, unit, value]) => {
    write(tile.figure, figure);
    write(tile.unit, unit);
    note(what, value, now);
    draw(tile.children[2], what, now, 1);
  });
}

function status(cell, answers) {
  keyed(cell, Object.entries(answers), ([code]) => code, ([code]) => make(`span.status.${code < 400 ? "good" : code < 500 ? "warn" : "bad"}`),
    (element, [code, number]) => {
      write(element, `${code}: ${count(number)}`);
    });
}

/** The stages of a route in order; of one that branches each step, with what it takes. */
function through(route) {
  if (!route.edges?.length) return route.stages.join(" → ");
  return route.edges.map(([from, to, when]) => `${from} → ${to || "answer"}${when ? ` (${when})` : ""}`).join(", ");
}

function showRoutes(routes, now) {
  const columns = [
    ["route", "whole.way", (route, cell) => {
      if (cell.firstChild) return;
      const swatch = make("span.swatch");
      swatch.style.setProperty("--swatch", colour(routes.indexOf(route)));
      cell.append(make("span", swatch, make("span.mono", route.path)));
    }],
    ["through", "whole.way", through],
    ["answers/s", "n", (route) => rate(route.answers_s)],
    ["p50", "n", (route) => time(route.p50_ms)],
    ["p99", "n", (route) => time(route.p99_ms)],
    ["by status", "answers", (route, cell) => {
      if (!cell.list) cell.append(cell.list = make("span"));
      status(cell.list, route.answers ?? {});
    }],
  ];
  table(at("routes"), columns, routes, (route) => route.path, "Nothing is known of the routes.");
}

function showRefused(told) {
  const reasons = new Map();
  for (const [where, counts] of [["at the door", told.refused], ...told.stages.map((stage) => [`at ${stage.name}`, stage.refused])]) {
    for (const [reason, number] of Object.entries(counts ?? {})) if (number) reasons.set(`${reason} ${where}`, number);
  }
  const most = Math.max(1, ...reasons.values());
  const place = at("refused");
  if (!place.list) {
    place.list = make("ul.bars.card");
    place.empty = make("p.empty.card", "Nobody was refused.");
    place.append(place.list, place.empty);
  }
  place.list.hidden = !reasons.size;
  place.empty.hidden = reasons.size > 0;
  keyed(place.list, [...reasons].sort((a, b) => b[1] - a[1]), ([reason]) => reason,
    () => make("li", make("span"), make("span"), make("span.bar", make("i"))), (element, [reason, number]) => {
      write(element.children[0], reason);
      write(element.children[1], count(number));
      element.children[2].firstChild.style.setProperty("--share", `${(100 * number) / most}%`);
    });
}

function showFailures(errors) {
  const columns = [
    ["last", "short", (one) => `${duration(one.age_s)} ago`],
    ["status", "", (one, cell) => {
      cell.className = `status ${one.status < 500 ? "warn" : "bad"}`;
      return one.status;
    }],
    ["stage", "", (one) => one.stage || NONE],
    ["route", "", (one) => one.route || NONE],
    ["times", "n", (one) => count(one.count)],
    ["what clients were told", "text", (one) => one.message],
    ["last request", "whole", (one, cell) => {
      if (!cell.id_) cell.append(cell.id_ = make("span.mono"));
      write(cell.id_, one.requests?.[0] ?? NONE);
      mark(cell, "title", (one.requests ?? []).length > 1 ? `and before it ${one.requests.slice(1).join(", ")}` : "");
    }],
  ];
  const keyOf = (one) => [one.cell, one.stage, one.route, one.status, one.message].join("\0");
  table(at("failures"), columns, errors, keyOf, "No request has failed.");
}

function showHosts(told) {
  const hosts = new Map();
  const put = (name, one) => (hosts.get(name || "unknown") ?? hosts.set(name || "unknown", []).get(name || "unknown")).push(one);
  for (const one of told.brokers ?? []) put(one.node, { ...one, what: one.cell ? `broker ${one.cell}` : "broker", state: "ready" });
  for (const one of told.frontends ?? []) put(one.node, { ...one, what: "frontend", state: `${one.pending} pending` });
  for (const stage of told.stages) {
    for (const one of [...(stage.workers ?? [])].sort((a, b) => a.slot - b.slot)) put(one.node, { ...one, what: `${stage.name}-${one.slot}`, cpu: one.lately?.cpu, worker: true });
  }
  const columns = [
    ["process", "name", (one) => one.what + (one.worker && one.cell ? ` (cell ${one.cell})` : "")],
    ["pid", "n", (one) => one.pid ?? NONE],
    ["state", "", (one) => one.state],
    ["busy", "n", (one) => (one.worker ? percent(one.lately?.busy) : NONE)],
    ["items/s", "n", (one) => (one.worker ? rate(one.lately?.items_s) : NONE)],
    ["CPU", "n", (one) => (one.cpu ?? 0).toFixed(2)],
    ["memory", "n", (one) => size(one.resident_bytes)],
    ["device", "", (one) => [one.device, one.device_bytes ? size(one.device_bytes) : ""].filter(Boolean).join(" ") || NONE],
    ["deaths", "n", (one) => (one.worker ? count(one.deaths) : NONE)],
  ];
  keyed(at("hosts"), [...hosts], ([name]) => name, ([name]) => {
    const element = make("div.host.scroll", make("h3", make("span", name), make("small")), make("div"));
    mark(element, "tabindex", 0);
    mark(element, "role", "region");
    mark(element, "aria-label", `What ${name} runs`);
    return element;
  }, (element, [, processes]) => {
    const totals = [`${processes.length} processes`, `CPU ${sum(processes.map((one) => one.cpu)).toFixed(2)}`,
      size(sum(processes.map((one) => one.resident_bytes)))];
    write(element.children[0].children[1], totals.join("  ·  "));
    table(element.children[1], columns, processes, (one) => `${one.what}/${one.cell ?? ""}/${one.pid}`, "");
  });
}

look();
