// The view of curves: who works, then a chart for each question, live, with a second run laid over the first.
import { ask, runPath } from "./api.js";
import { draw, escaped } from "./charts.js";
import { el, figure, percent, setOptions, table } from "./dom.js";
import { PANELS, figuresOf, reported } from "./panels.js";

const LEDGER_NOTE = "From the ledger, which is written at checkpoints.";

export class CurvesView {
  constructor(section, metrics) {
    this.metrics = metrics;
    this.pool = el("div");
    this.panels = el("div", { className: "panels" });
    this.pick = el("select", { "aria-label": "Any other figure" });
    this.pick.addEventListener("change", () => this.draw());
    this.frames = new Map();
    this.criteria = new Map();
    this.legend = el("p", { className: "quiet" });
    section.append(this.pool, el("h2", {}, "Curves"), this.legend, this.panels);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** `runs` are one or two {name, steps}; `overview` is of the first. */
  async show(runs, overview, changed) {
    this.runs = runs;
    this.starts = stageStarts(overview.stages);
    this.pool.replaceChildren(...poolTable(overview));
    this.legend.textContent = runs.length > 1 ? `Solid: ${runs[0].name}. Dotted: ${runs[1].name}.` : "";
    if (!changed) return;
    for (const { name } of runs) this.criteria.set(name, await ask(runPath(name, "criteria")));
    this.draw();
  }

  draw() {
    if (!this.runs) return;
    const names = reported(this.runs.flatMap(({ steps }) => steps.rows));
    for (const panel of PANELS) this.drawPanel(panel, this.curves(panel, figuresOf(panel, names)));
    this.drawAny(names);
  }

  curves(panel, names) {
    return panel.criteria ? this.criteriaCurves() : names.flatMap((name, i) => this.stepCurves(name, i));
  }

  stepCurves(name, colour) {
    return this.runs.map((run, i) => ({
      name: label(name, run, i),
      figure: name,
      x: run.steps.rows.map((row) => row.overall),
      y: run.steps.rows.map((row) => row[name] ?? null),
      colour,
      dashed: i > 0,
    }));
  }

  criteriaCurves() {
    const rows = this.runs.map(({ name }) => this.criteria.get(name) ?? []);
    const names = [...new Set(rows.flat().flatMap((row) => Object.keys(row.criteria)))].sort();
    return names.flatMap((name, colour) => this.runs.map((run, i) => ({
      name: label(name, run, i),
      figure: name,
      x: rows[i].map((row) => row.overall),
      y: rows[i].map((row) => row.criteria[name] ?? null),
      colour,
      dashed: i > 0,
    })));
  }

  drawPanel(panel, curves) {
    const found = curves.some((curve) => curve.y.some((value) => value !== null));
    const frame = this.frames.get(panel) ?? this.addFrame(panel);
    frame.figure.hidden = !found;
    if (!found) return;
    const latest = lastOf(curves[0]);
    frame.latest.textContent = latest === null ? "" : `${curves[0].figure} ${figure(latest)}`;
    const said = curves.map((curve) => `${curve.name} ${figure(lastOf(curve))}`);
    frame.chart.setAttribute("aria-label", `${panel.title}. Latest: ${said.join(", ")}`);
    this.explain(frame, [...new Set(curves.map((curve) => curve.figure))]);
    draw(frame.chart, curves, this.starts);
  }

  explain(frame, names) {
    const told = names.filter((name) => this.metrics[name]);
    const lines = told.flatMap((name) => [el("dt", {}, name), el("dd", {}, meaning(this.metrics[name]))]);
    frame.meanings.replaceChildren(...lines);
    frame.details.hidden = told.length === 0;
  }

  addFrame(panel, title = panel.title) {
    const latest = el("span", { className: "quiet latest" });
    const frame = { chart: el("div", { role: "img" }), latest, meanings: el("dl") };
    frame.details = el("details", {}, el("summary", {}, "What these are"), frame.meanings);
    const note = panel.criteria ? el("p", { className: "quiet" }, LEDGER_NOTE) : null;
    const caption = el("figcaption", {}, el("h3", {}, title), latest);
    frame.figure = el("figure", { className: "panel" }, caption, frame.chart, note, frame.details);
    this.panels.append(frame.figure);
    this.frames.set(panel, frame);
    return frame;
  }

  /** One chart for any figure, as not all have a place of their own. */
  drawAny(names) {
    const chosen = names.includes(this.pick.value) ? this.pick.value : names[0];
    setOptions(this.pick, names.map((name) => [name, name]), chosen);
    if (!this.frames.has(ANY)) this.addFrame(ANY, this.pick);
    this.drawPanel(ANY, chosen ? this.stepCurves(chosen, 0) : []);
  }
}

/** The first run's curves go by the figure alone. */
function label(name, run, i) {
  return escaped(i > 0 ? `${name} · ${run.name}` : name);
}

const ANY = { title: "Any figure" };

function meaning(metric) {
  return metric.unit ? `${metric.meaning} [${metric.unit}]` : metric.meaning;
}

function lastOf(curve) {
  return curve.y.findLast((value) => value !== null) ?? null;
}

function stageStarts(stages) {
  let before = 0;
  return stages.map((stage) => {
    const start = { x: before + 0.5, name: stage.name };
    before += stage.steps;
    return start;
  });
}

/** Actors, and how they spent the last steps: who waits much waits for whoever works most. */
function poolTable(overview) {
  const there = overview.pool.filter((part) => part.actors || part.busy !== null);
  const meter = (share) => el("meter", { min: 0, max: 1, value: share, title: percent(share) });
  const columns = [
    { title: "Part", text: true, cell: (p) => p.part },
    { title: "Actors", cell: (p) => figure(p.actors) },
    { title: "GPUs each", cell: (p) => (p.actors ? figure(p.gpus_each) : "–") },
    { title: "", text: true, cell: (p) => (p.busy === null ? "–" : meter(p.busy)) },
    { title: "Works", cell: (p) => percent(p.busy) },
    { title: "Waits", cell: (p) => (p.busy === null || p.actors === null ? "–" : percent(Math.max(0, 1 - p.busy))) },
  ];
  const busiest = there.filter((part) => part.busy !== null).sort((a, b) => b.busy - a.busy)[0];
  const told = busiest ? `Busiest: ${busiest.part}.` : "No step is done yet.";
  const note = el("p", { className: "quiet" }, `Shares of the wall time of the last 10 steps. ${told}`);
  return [el("h2", {}, "Who works, who waits"), note, table(columns, there)];
}
