// What is shown, said by the address: #view=...&run=...&with=...&group=..., so that it can be kept and gone back to.
import { Steps, ask } from "./api.js";
import { CurvesView } from "./curves.js";
import { duration, setOptions } from "./dom.js";
import { showRecipe } from "./recipe.js";
import { SummariesView } from "./summaries.js";

const EVERY_MS = 2000;
const QUIET_S = 600;
const VIEWS = ["curves", "summaries", "recipe"];
const byId = (id) => document.getElementById(id);

class Page {
  constructor(metrics) {
    this.steps = new Map();
    this.curves = new CurvesView(byId("curves"), metrics);
    const toGroup = (group) => this.href({ view: "summaries", group });
    this.summaries = new SummariesView(byId("summaries"), toGroup);
    byId("run").addEventListener("change", (event) => this.go({ run: event.target.value, group: "" }));
    byId("other").addEventListener("change", (event) => this.go({ with: event.target.value }));
    addEventListener("hashchange", () => this.update(true));
  }

  address() {
    const fields = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    return { view: "curves", run: "", with: "", group: "", ...fields };
  }

  href(change) {
    const fields = Object.entries({ ...this.address(), ...change }).filter(([, value]) => value);
    return `#${new URLSearchParams(fields)}`;
  }

  go(change) {
    location.hash = this.href(change);
  }

  async update(moved = false) {
    try {
      await this.refresh(moved);
      byId("trouble").hidden = true;
    } catch (error) {
      byId("trouble").textContent = `${error.message}; the page tries again`;
      byId("trouble").hidden = false;
    }
  }

  async refresh(moved) {
    const runs = await ask("/api/runs");
    const address = this.address();
    const known = new Map(runs.map((run) => [run.id, run]));
    const run = known.has(address.run) ? address.run : runs[0].id;
    const other = known.has(address.with) && address.with !== run ? address.with : "";
    const view = VIEWS.includes(address.view) ? address.view : "curves";
    this.head(runs, known.get(run), other, view);
    const shown = [run, other].filter(Boolean);
    const grown = await Promise.all(shown.map((name) => this.stepsOf(name).update()));
    const parts = shown.map((name) => `${name} ${known.get(name).parts}`).join();
    const changed = grown.some(Boolean) || parts !== this.parts;
    this.parts = parts;
    for (const name of VIEWS) byId(name).hidden = name !== view;
    const stale = moved || changed || this.late?.has(view);
    this.late = changed || moved ? new Set(VIEWS) : (this.late ?? new Set());
    this.late.delete(view);
    const series = shown.map((name) => ({ name, steps: this.stepsOf(name) }));
    if (view === "curves") await this.curves.show(series, known.get(run), stale);
    else if (view === "summaries") await this.summaries.show(run, other, address.group, stale);
    else if (stale) await showRecipe(byId("recipe"), known.get(run), run);
  }

  stepsOf(run) {
    if (!this.steps.has(run)) this.steps.set(run, new Steps(run));
    return this.steps.get(run);
  }

  head(runs, overview, other, view) {
    const options = runs.map((run) => [run.id, run.id]);
    setOptions(byId("run"), options, overview.id);
    setOptions(byId("other"), [["", "nothing"], ...options.filter(([id]) => id !== overview.id)], other);
    for (const name of VIEWS) {
      const link = byId(`to-${name}`);
      link.href = this.href({ view: name, group: "" });
      if (name === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${overview.id} · speechsum`;
    byId("status").textContent = status(overview);
    byId("status").className = !overview.finished && overview.age_s !== null && overview.age_s < QUIET_S ? "live" : "";
  }
}

function status(run) {
  if (run.step === null) return "no step yet";
  const steps = run.steps ? `${run.done} of ${run.steps} steps` : `${run.done} steps`;
  const end = run.finished ? "finished" : "last step";
  return `${run.stage} · ${steps} · ${end} ${duration(Math.max(0, run.age_s ?? 0))} ago`;
}

async function begin() {
  const page = new Page(await ask("/api/metrics"));
  await page.update(true);
  const tick = async () => {
    if (!document.hidden) await page.update();
    setTimeout(tick, EVERY_MS);
  };
  setTimeout(tick, EVERY_MS);
}

addEventListener("DOMContentLoaded", begin);
