// The view of the run itself: its stages, what came of it, and the recipe it was started with.
import { ask, runPath } from "./api.js";
import { el, fill, figure, table } from "./dom.js";

const DAMAGED = "line(s) of metrics.jsonl are damaged and left out.";

export async function showRecipe(section, overview, run) {
  const details = await ask(runPath(run, "details"));
  fill(
    section,
    el("h2", {}, overview.name),
    el("p", { className: "quiet" }, overview.path),
    overview.problem ? el("p", { className: "bad" }, overview.problem) : null,
    overview.broken_lines ? el("p", { className: "bad" }, `${overview.broken_lines} ${DAMAGED}`) : null,
    el("h2", {}, "Stages"),
    stages(overview),
    ...evaluation(details.summary),
    el("h2", {}, "Files"),
    whole("summary.json", details.summary, "written when the run ends"),
    whole("config.json", details.config, "not readable"),
  );
}

function stages(overview) {
  return table([
    { title: "Stage", text: true, cell: (s) => s.name },
    { title: "Loss", text: true, cell: (s) => s.loss },
    { title: "Completions from", text: true, cell: (s) => s.completions },
    { title: "Scored by", text: true, cell: (s) => s.scorers.join(", then ") || "nobody" },
    { title: "Steps", cell: (s) => figure(s.steps) },
    { title: "Groups a step", cell: (s) => figure(s.groups_per_step) },
    { title: "Completions a group", cell: (s) => figure(s.group_size) },
    { title: "Max staleness", cell: (s) => figure(s.max_staleness) },
  ], overview.stages);
}

/** Measures of held-out speech, a column for each time it was evaluated. */
function evaluation(summary) {
  const isMeasure = (value) => value && typeof value === "object" && "mean" in value;
  const all = Object.entries(summary?.eval ?? {});
  const times = all.filter(([, measures]) => Object.values(measures ?? {}).some(isMeasure));
  const names = [...new Set(times.flatMap(([, m]) => Object.keys(m).filter((name) => isMeasure(m[name]))))];
  if (names.length === 0) return [];
  const columns = times.map(([title, measures]) => ({ title, cell: (name) => measure(measures[name]) }));
  const measures = { title: "Measure", text: true, cell: (name) => name };
  return [el("h2", {}, "On held-out speech"), table([measures, ...columns], names)];
}

function measure(value) {
  if (!value) return "–";
  const [low, high] = value.ci95 ?? [];
  return low === undefined ? figure(value.mean) : `${figure(value.mean)} (${figure(low)} to ${figure(high)})`;
}

function whole(name, tree, absent) {
  if (!tree) return el("p", { className: "quiet" }, `${name}: ${absent}`);
  return el("details", {}, el("summary", {}, name), el("pre", {}, JSON.stringify(tree, null, 2)));
}
