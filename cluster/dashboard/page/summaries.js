// The view of summaries: a table of groups to filter, and one group in full.
import { ask, runPath } from "./api.js";
import { el, figure, setOptions, table } from "./dom.js";
import { showGroup } from "./group.js";

const PAGE = 50;
const TYPING_MS = 300;
const ORDERS = [
  ["newest", "newest first"], ["oldest", "oldest first"], ["best", "highest reward"], ["worst", "lowest reward"],
  ["widest", "widest spread of rewards"],
];

export class SummariesView {
  /** `href(group)` is the address of a group by its id, and of the table for "". */
  constructor(section, href) {
    this.href = href;
    this.offset = 0;
    this.fields = fields();
    const labelled = Object.entries(LABELS).map(([name, label]) => el("label", {}, label, this.fields[name]));
    this.form = el("form", { className: "filters" }, labelled);
    this.form.append(el("button", { type: "reset" }, "Clear"));
    this.told = el("p", { className: "quiet", role: "status" });
    this.tally = el("p", { className: "quiet" });
    this.rows = el("div");
    this.pager = el("div", { className: "pager" });
    this.list = el("div", {}, this.form, this.tally, this.told, this.rows, this.pager);
    this.single = el("div", { hidden: true });
    section.append(this.list, this.single);
    this.listen();
  }

  listen() {
    let waiting = 0;
    const refine = (delay) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { this.offset = 0; this.refresh(); }, delay);
    };
    this.form.addEventListener("input", () => refine(TYPING_MS));
    this.form.addEventListener("reset", () => refine(0));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); refine(0); });
  }

  /** Show the table, or the group; `changed` says that the run has new steps. */
  async show(run, other, groupId, changed) {
    const key = `${run}\n${other}\n${groupId}`;
    const moved = key !== this.key;
    const before = this.groupId;
    if (run !== this.run) this.offset = 0;
    Object.assign(this, { run, other, groupId, key });
    this.list.hidden = Boolean(groupId);
    this.single.hidden = !groupId;
    if (groupId && moved) await showGroup(this.single, run, other, groupId, this.found ?? [], this.href);
    else if (!groupId && (moved || changed)) await this.refresh();
    if (moved && before && !groupId) this.rows.querySelector(`a[href*="${before}"]`)?.focus();
  }

  async refresh() {
    const chosen = Object.entries(this.fields).map(([name, field]) => [name, field.value]);
    const asked = { ...Object.fromEntries(chosen), offset: this.offset };
    const turn = (this.turn = {});
    let answer;
    try {
      answer = await ask(runPath(this.run, "groups"), asked);
    } catch (error) {
      this.told.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return; // an answer to a later question is on its way, or here
    this.found = answer.groups.map((group) => group.id);
    this.offer(answer.tally);
    const count = `${answer.total} ${answer.total === 1 ? "group" : "groups"}`;
    this.told.textContent = [count, ...answer.problems].join(" · ");
    this.rows.replaceChildren(answer.groups.length ? this.lines(answer.groups) : el("p", {}, nothing(answer.tally)));
    this.turnPages(answer.total);
  }

  /** Choices for the filters, with how many summaries each has; and the counts as a line. */
  offer(tally) {
    const counted = (counts) => Object.entries(counts).sort((a, b) => b[1] - a[1]);
    for (const [name, kind] of [["stage", "stages"], ["fate", "fates"], ["gate", "gates"]]) {
      const options = counted(tally[kind]).map(([value, n]) => [value, `${value} (${n})`]);
      const chosen = this.fields[name].value;
      const kept = chosen && !(chosen in tally[kind]) ? [[chosen, `${chosen} (0)`]] : [];
      setOptions(this.fields[name], [["", "any"], ...options, ...kept], chosen);
    }
    const { trained, ...dropped } = tally.fates;
    const told = (title, counts) => {
      const parts = counted(counts).map(([what, n]) => `${n} ${what}`);
      return parts.length ? `${title}: ${parts.join(", ")}` : "";
    };
    const parts = [
      trained ? `${trained} summaries trained on` : "", told("not trained on", dropped), told("gated", tally.gates),
      told("judgements that failed", tally.failures),
    ];
    this.tally.textContent = parts.filter(Boolean).join(" · ");
  }

  lines(groups) {
    return table([
      { title: "Step", cell: (g) => figure(g.step) },
      { title: "Stage", text: true, cell: (g) => g.stage },
      { title: "Prompt", text: true, cell: (g) => el("a", { href: this.href(g.id) }, g.prompt_id || "?") },
      { title: "Reward", cell: (g) => figure(g.reward_mean) },
      { title: "Least", cell: (g) => figure(g.reward_min) },
      { title: "Most", cell: (g) => figure(g.reward_max) },
      { title: "Trained", cell: (g) => (g.epoch === null ? "best of them" : `${g.trained} of ${g.summaries}`) },
      { title: "Dropped, gated, failed", text: true, cell: (g) => amiss(g).join(", ") },
      { title: "Asked", text: true, long: true, cell: (g) => g.instruction },
      { title: "Best summary", text: true, long: true, cell: (g) => g.best },
    ], groups);
  }

  turnPages(total) {
    const move = (label, offset, possible) => {
      const button = el("button", { type: "button", disabled: !possible }, label);
      button.addEventListener("click", () => { this.offset = offset; this.refresh(); });
      return button;
    };
    const last = Math.min(this.offset + PAGE, total);
    this.pager.hidden = total <= PAGE;
    this.pager.replaceChildren(
      move("Earlier page", Math.max(0, this.offset - PAGE), this.offset > 0),
      el("span", { className: "quiet" }, `${this.offset + 1}–${last} of ${total}`),
      move("Later page", this.offset + PAGE, last < total),
    );
  }
}

function amiss(group) {
  return [...group.fates, ...group.gates, ...(group.failures ? [`${group.failures} not judged`] : [])];
}

function nothing(tally) {
  return Object.keys(tally.fates).length ? "No group passes these filters." : NOTHING_YET;
}

const NOTHING_YET =
  "No summaries yet. They come with the first steps of a stage that makes its own; " +
  "sft, and dpo on pairs made before, train on the data's.";

const LABELS = {
  text: "Text", stage: "Stage", step_from: "Steps from", step_to: "to", reward_min: "Rewards from", reward_max: "to",
  gate: "Gate", fate: "Trained, or why not", order: "Order",
};

function fields() {
  const number = (step) => el("input", { type: "number", step });
  const order = el("select");
  setOptions(order, ORDERS, "newest");
  return {
    text: el("input", { type: "search", placeholder: "summary, request or id" }),
    stage: el("select"), step_from: number("1"), step_to: number("1"),
    reward_min: number("any"), reward_max: number("any"),
    gate: el("select"), fate: el("select"), order,
  };
}
