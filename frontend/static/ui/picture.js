// The pipeline: frontends, stages with their queues and workers, and the routes between them as lines. The cards are
// ordinary elements, which the browser lays out; the lines are drawn to where it has put them.

import { count, draw, duration, keyed, make, mark, note, percent, rate, size, span, sparkline, sum, svg, time, write } from "./figures.js";

const REASONS = { full: "--good", idle: "--accent", wait: "--warn", deadline: "--r2", replay: "--bad", drain: "--quiet" };
const SHOWN = 60; // workers of one stage

export const colour = (index) => `var(--r${index % 6})`;

/** A stage that may be without workers takes requests all the same, as /readyz has it. */
const mayRest = (stage) => stage.bounds?.[0] === 0;

export const isMissing = (stage) => Boolean(stage.error || stage.not_fed || !(stage.ready || mayRest(stage)));

/** It has no worker because nobody asks. `wanted` need not say so: others may scale it than who is asked. */
export const isResting = (stage) => mayRest(stage) && !isMissing(stage) && !stage.ready && !stage.starting && !stage.queued;

/** What stands beside the name of a stage, and whether that is good, warn or bad; nothing of these where it rests. */
export function presence(stage) {
  if (isResting(stage)) return [`resting · 0 of ${stage.bounds.join("-")}`, ""];
  const kind = stage.ready && stage.ready >= stage.wanted ? "good" : stage.ready || !isMissing(stage) ? "warn" : "bad";
  return [`${stage.ready} of ${stage.wanted} ready`, kind];
}

/** The steps of a route, as [from, to]; to "": to the answer. A chain has one after each stage. */
const steps = (route) => route.edges?.length ? route.edges : route.stages.map((name, at) => [name, route.stages[at + 1] ?? ""]);

/** How far from the frontends each stage stands: behind all that come before it on any route. */
function depths(stages, routes) {
  const depth = Object.fromEntries(stages.map((stage, index) => [stage.name, routes.length ? 1 : index + 1]));
  for (let turn = 0; turn < stages.length; turn += 1) {
    for (const route of routes) {
      for (const [from, to] of steps(route)) {
        if (to in depth) depth[to] = Math.max(depth[to], (depth[from] ?? 0) + 1);
      }
      if (Math.max(...Object.values(depth)) > stages.length) return Object.fromEntries(stages.map((s, i) => [s.name, i + 1]));
    }
  }
  return depth;
}

export class Picture {
  constructor(place) {
    this.columns = make("div.columns");
    this.lines = svg("svg", { "aria-hidden": "true" });
    this.inner = make("div.inner", this.lines, this.columns);
    place.append(this.inner);
    this.nodes = new Map();
    new ResizeObserver(() => this.connect()).observe(this.columns);
  }

  show(told, now) {
    this.routes = told.routes ?? [];
    const depth = depths(told.stages, this.routes);
    const columns = [[{ front: true, name: "" }]];
    for (const stage of told.stages) (columns[depth[stage.name]] ??= []).push(stage);
    keyed(this.columns, columns.filter(Boolean), (_, index) => index, () => make("div.column"), (column, nodes) => {
      keyed(column, nodes, (node) => node.name, (node) => (node.front ? new Front() : new Stage(node)).element,
        (element, node) => {
          this.nodes.set(node.name, element);
          element.view.show(node.front ? told : node, now);
        });
    });
    for (const [name, element] of this.nodes) if (!element.isConnected) this.nodes.delete(name);
    this.connect();
  }

  /** Draw the lines: forth from side to side, back below everything; one below the other on a narrow screen. */
  connect() {
    if (!this.routes) return;
    const box = this.inner.getBoundingClientRect();
    const place = (name) => {
      const node = this.nodes.get(name)?.getBoundingClientRect();
      return node && { left: node.left - box.left, right: node.right - box.left, top: node.top - box.top,
        bottom: node.bottom - box.top, x: node.left - box.left + node.width / 2, y: node.top - box.top + node.height / 2 };
    };
    const front = place("");
    const upright = getComputedStyle(this.columns).gridAutoFlow.startsWith("row");
    this.columns.style.paddingBottom = upright ? "" : `${14 + 12 * this.routes.length}px`;
    this.columns.style.paddingRight = upright ? "" : `${12 + 7 * this.routes.length}px`;
    const lines = [];
    this.routes.forEach((route, index) => {
      const shift = (index - (this.routes.length - 1) / 2) * 9;
      const stops = Object.fromEntries(route.stages.map((name) => [name, place(name)]));
      if (!front || !route.stages.length || Object.values(stops).some((stop) => !stop)) return;
      const ways = steps(route);
      const width = Math.min(1.5 + 1.2 * Math.log10(1 + (route.answers_s ?? 0)), 6).toFixed(1);
      let path = "", tips = "";
      const pairs = ways.filter(([, to]) => to).map(([from, to]) => [stops[from], stops[to]]);
      for (const [from, to] of [[front, stops[route.stages[0]]], ...pairs]) {
        if (upright) {
          const middle = (from.bottom + to.top) / 2;
          path += `M${from.x + shift} ${from.bottom}C${from.x + shift} ${middle} ${to.x + shift} ${middle} ${to.x + shift} ${to.top - 6}`;
          tips += `M${to.x + shift - 5} ${to.top - 8}h10l-5 8Z`;
        } else {
          const bend = Math.max((to.left - from.right) / 2, 12);
          path += `M${from.right} ${from.y + shift}C${from.right + bend} ${from.y + shift} ${to.left - bend} ${to.y + shift} ${to.left - 6} ${to.y + shift}`;
          tips += `M${to.left - 8} ${to.y + shift - 5}v10l8 -5Z`;
        }
      }
      lines.push({ key: `${route.path} forth`, path, width, index }, { key: `${route.path} tips`, path: tips, index, tips });
      if (!upright) {
        const floor = box.height - 8 - 12 * index, r = 8;
        const ends = [...new Set(ways.filter(([, to]) => !to).map(([from]) => from))].map((name) => stops[name]);
        const back = ends.map((last) => {
          const x = last.right + 12 + 7 * index;
          return `M${last.right} ${last.y + shift}H${x - r}Q${x} ${last.y + shift} ${x} ${last.y + shift + r}V${floor - r}` +
            `Q${x} ${floor} ${x - r} ${floor}H${front.x + shift + r}Q${front.x + shift} ${floor} ${front.x + shift} ${floor - r}V${front.bottom}`;
        });
        lines.push({ key: `${route.path} back`, width, index, back: true, path: back.join("") });
      }
    });
    keyed(this.lines, lines, (line) => line.key, () => svg("path", { "stroke-linecap": "round" }), (element, line) => {
      mark(element, "d", line.path);
      element.style.stroke = line.tips ? "none" : colour(line.index);
      element.style.fill = line.tips ? colour(line.index) : "none";
      element.style.strokeWidth = `${line.back ? 1.5 : line.width}px`;
      element.style.strokeDasharray = line.back ? "2 6" : "";
    });
  }
}

class Card {
  constructor(title) {
    this.title = make("span", title);
    this.side = make("span.pill");
    this.rate = make("div.rate");
    this.spark = sparkline();
    this.list = make("dl");
    this.element = make("article.node.card", make("h3", this.title, this.side), this.rate, this.spark, this.list);
    this.element.view = this;
  }

  facts(pairs) {
    const shown = pairs.filter((pair) => pair);
    keyed(this.list, shown.flatMap(([what, figure]) => [[`${what}?`, what, "dt"], [what, figure, "dd"]]),
      ([key]) => key, ([, , tag]) => make(tag), (element, [, text]) => write(element, text));
  }
}

class Front extends Card {
  constructor() {
    super("Frontends");
  }

  show(told, now) {
    const processes = told.frontends ?? [];
    write(this.side, `${processes.length} process${processes.length === 1 ? "" : "es"}`);
    const rates = told.rates ?? {};
    write(this.rate, `${rate(rates.admitted_s)} requests/s in`);
    note("front", rates.admitted_s, now);
    draw(this.spark, "front", now, 1);
    this.facts([
      ["under way", `${count(told.admitted)} of ${count(told.capacity)}`],
      ["bodies", size(told.admitted_bytes)],
      ["refused", `${rate(rates.refused_s)} /s`],
      ["CPU", sum(processes.map((one) => one.cpu)).toFixed(2)],
    ]);
  }
}

class Stage extends Card {
  constructor(stage) {
    super(stage.name);
    this.note = make("p.note");
    this.workers = make("ul.workers");
    this.workers.setAttribute("aria-label", `Workers of ${stage.name}`);
    this.shares = make("div.shares");
    this.legend = make("ul.legend");
    this.element.append(this.workers, this.shares, this.legend, this.note);
  }

  show(stage, now) {
    if (stage.error) {
      write(this.note, stage.error);
      this.element.classList.add("trouble");
      return;
    }
    const lately = stage.lately ?? {};
    const key = `stage ${stage.name}`;
    note(key, lately.items_s, now);
    draw(this.spark, key, now, 1);
    const [words, kind] = presence(stage);
    write(this.side, words);
    this.side.className = `pill ${kind}`;
    write(this.rate, `${rate(lately.items_s)} items/s`);
    const size_ = lately.mean_batch || stage.mean_batch;
    this.facts([
      ["queue", `${count(stage.queued)} · ${size(stage.queued_bytes)}`],
      ["oldest", time(stage.oldest_ms)],
      ["batch", `${size_ ? size_.toFixed(1) : "–"} · ${rate(lately.batches_s)} /s`],
      ["wait p50\u00a0·\u00a0p99", span(lately.queue)],
      ["compute p50\u00a0·\u00a0p99", span(lately.compute)],
      ["busy", percent(lately.busy)],
      ["deaths · replays", `${count(stage.deaths)} · ${count(stage.replayed)}`],
    ]);
    const trouble = stage.not_fed ? `Not fed: ${stage.not_fed}` : "";
    write(this.note, trouble);
    this.element.classList.toggle("trouble", isMissing(stage));
    this.showWorkers(stage.workers ?? []);
    this.showReasons(lately.reasons ?? stage.batches_by_reason ?? {});
  }

  showWorkers(workers) {
    const ordered = [...workers].sort((a, b) => (a.cell ?? 0) - (b.cell ?? 0) || a.slot - b.slot || a.pid - b.pid);
    const shown = ordered.slice(0, SHOWN);
    if (ordered.length > SHOWN) shown.push({ more: ordered.length - SHOWN });
    keyed(this.workers, shown, (worker) => (worker.more ? "more" : `${worker.cell ?? ""}/${worker.slot}/${worker.pid}`),
      (worker) => make(worker.more ? "li.more" : "li"), (element, worker) => {
        if (worker.more) return write(element, `and ${worker.more}`);
        const busy = percent(worker.lately?.busy);
        write(element, worker.slot);
        element.style.setProperty("--busy", busy.replace(" ", ""));
        element.classList.toggle("other", worker.state !== "ready");
        const words = [`worker ${worker.slot}${worker.cell ? ` of cell ${worker.cell}` : ""}: ${worker.state}`, `busy ${busy}`,
          `${rate(worker.lately?.items_s)} items/s`, `pid ${worker.pid}`, worker.device, size(worker.resident_bytes),
          worker.up_s ? `up for ${duration(worker.up_s)}` : "", worker.deaths ? `${worker.deaths} deaths here` : ""];
        mark(element, "title", words.filter(Boolean).join(", "));
      });
  }

  showReasons(reasons) {
    const total = sum(Object.values(reasons));
    const shown = Object.entries(reasons).filter(([, number]) => number).sort((a, b) => b[1] - a[1]);
    keyed(this.shares, shown, ([reason]) => reason, () => make("i"), (element, [reason, number]) => {
      element.style.width = `${(100 * number) / total}%`;
      element.style.background = `var(${REASONS[reason] ?? "--quiet"})`;
    });
    keyed(this.legend, shown, ([reason]) => reason, () => make("li"), (element, [reason, number]) => {
      element.style.setProperty("--swatch", `var(${REASONS[reason] ?? "--quiet"})`);
      write(element, `${reason} ${percent(number / total)}`);
    });
    mark(this.legend, "aria-label", shown.length ? "Why batches left" : "");
    this.shares.hidden = !shown.length;
  }
}
