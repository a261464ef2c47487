// One group: the recording, what was asked, and every summary side by side with its reward and what became of it.
import { ask, recordingPath, runPath } from "./api.js";
import { el, figure, fill } from "./dom.js";

const BEST_ONLY = "Only the best is recorded so far; the others follow with the ledger, at a checkpoint at the latest.";

/** Fill `place`. `found` are the ids of the table that one came from, for going on to the next. */
export async function showGroup(place, run, other, id, found, href) {
  const bar = toolbar(id, found, href);
  let group;
  try {
    group = await ask(runPath(run, `groups/${id}`));
  } catch (error) {
    fill(place, bar, el("p", { className: "bad" }, `${error.message}: the ledger was written since; see the table.`));
    return;
  }
  const epoch = group.epoch === null ? null : `epoch ${group.epoch}`;
  fill(
    place,
    bar,
    el("h2", { tabIndex: -1 }, group.prompt_id),
    el("p", { className: "quiet" }, [group.stage, where(group), epoch].filter(Boolean).join(" · ")),
    player(recordingPath(run, id)),
    asked(group),
    el("h2", {}, other ? `Summaries in ${run}` : "Summaries"),
    epoch ? null : el("p", { className: "quiet" }, BEST_ONLY),
    cards(group.summaries),
  );
  place.querySelector("h2").focus(); // the link that was followed is gone
  if (other) place.append(...(await otherGroup(other, group)));
}

function where(group) {
  return group.step === null ? "dropped" : `step ${group.step}`;
}

function toolbar(id, found, href) {
  const at = found.indexOf(id);
  const link = (label, target) => (target === undefined ? null : el("a", { href: href(target) }, label));
  const next = at < 0 ? undefined : found[at + 1];
  const links = [link("Back to the table", ""), link("Previous", found[at - 1]), link("Next", next)];
  return el("p", { className: "toolbar" }, links);
}

/** A player that says why it cannot play. */
function player(source) {
  const trouble = el("p", { className: "quiet", role: "status" });
  const audio = el("audio", { controls: true, preload: "metadata", src: source });
  audio.addEventListener("error", async () => {
    audio.hidden = true;
    const answer = await fetch(source, { headers: { Range: "bytes=0-0" } });
    const body = answer.ok ? {} : await answer.json().catch(() => ({}));
    trouble.textContent = `Not playable: ${body.error ?? "this browser does not know the format"}`;
  });
  return el("div", {}, audio, trouble);
}

function asked(group) {
  const parts = [["Asked", group.instruction], ["Reference", group.reference]].filter(([, text]) => text);
  const list = el("dl", {}, parts.flatMap(([title, text]) => [el("dt", {}, title), el("dd", {}, text)]));
  if (!group.transcript) return list;
  const transcript = el("p", { className: "said" }, group.transcript);
  return el("div", {}, list, el("details", {}, el("summary", {}, "Transcript"), transcript));
}

/** Side by side, the best first; what was not judged comes last. */
function cards(summaries) {
  const order = [...summaries].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  return el("div", { className: "cards" }, order.map(card));
}

function card(summary) {
  return el(
    "article", { className: `card${summary.preferred ? " preferred" : ""}` },
    el("div", { className: "head" }, reward(summary), fate(summary)),
    summary.reward !== null && summary.reward >= 0 && summary.reward <= 1 ? meter(summary.reward) : null,
    el("p", { className: "said" }, summary.text || "(nothing)"),
    summary.gate ? el("p", { className: "bad" }, `turned down before the judge: ${summary.gate}`) : null,
    summary.judge_failure ? el("p", { className: "bad" }, `the judgement failed: ${summary.judge_failure}`) : null,
    breakdown(Object.entries(summary.breakdown)),
    el("p", { className: "quiet" }, facts(summary).filter(Boolean).join(" · ")),
  );
}

function reward(summary) {
  return el("span", { className: "reward" }, summary.reward === null ? "not judged" : figure(summary.reward));
}

function meter(value) {
  return el("meter", { min: 0, max: 1, value, "aria-label": "reward" });
}

function breakdown(criteria) {
  const line = ([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, figure(value)));
  return criteria.length ? el("table", {}, el("tbody", {}, criteria.map(line))) : null;
}

function facts(summary) {
  const side = summary.preferred ? "preferred" : "the other side";
  return [
    `version ${summary.policy_version}`,
    summary.tokens === null ? null : `${summary.tokens} tokens${summary.finish_reason === "length" ? ", cut off" : ""}`,
    summary.advantage === null ? null : `advantage ${figure(summary.advantage)}`,
    summary.pair === null ? null : `pair ${summary.pair}, ${side}`,
  ];
}

function fate(summary) {
  if (summary.step !== null) return el("span", { className: "quiet" }, `trained in step ${summary.step}`);
  return el("span", { className: "bad" }, `not trained: ${summary.drop_reason}`);
}

/** What the other run last made of the same prompt. */
async function otherGroup(run, group) {
  const title = el("h2", {}, `Summaries in ${run}`);
  const answer = await ask(runPath(run, "groups"), { prompt: group.prompt_id });
  if (answer.groups.length === 0) return [title, el("p", { className: "quiet" }, "That run has none of this prompt.")];
  const theirs = await ask(runPath(run, `groups/${answer.groups[0].id}`));
  const note = `${theirs.stage} · ${where(theirs)}, its latest of this prompt`;
  return [title, el("p", { className: "quiet" }, note), cards(theirs.summaries)];
}
