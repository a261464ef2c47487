// Which figures stand together: those of one unit that answer one question. A panel nobody reports to is not shown.

export const PANELS = [
  { title: "Reward", names: ["judge/reward_mean", "judge/reward_std"] },
  { title: "Reward by criterion", criteria: true },
  { title: "Throughput, tokens/s", names: ["rollout/tokens_per_s", "learner/tokens_per_s"] },
  { title: "Who works, share of the step", prefix: "busy/" },
  {
    title: "Actors",
    names: ["rollout/actors_serving", "rollout/actors_wanted", "judge/actors_serving", "judge/actors_wanted"],
  },
  { title: "Staleness, versions", names: ["buffer/staleness_max"] },
  { title: "Groups dropped, by reason", prefix: "buffer/dropped_" },
  { title: "Judging, shares", names: ["judge/gated_share", "judge/failure_share", "rollout/truncated_share"] },
  { title: "Failed judgements, by kind", prefix: "judge/failed_" },
  { title: "Loss", names: ["learner/loss"] },
  { title: "Gradient norm", names: ["learner/grad_norm"] },
  { title: "Rollout and learner apart, nats/token", names: ["learner/logprob_gap", "learner/reference_kl"] },
  { title: "Entropy, nats/token", names: ["learner/entropy"] },
  { title: "Clipping", names: ["learner/clip_share", "learner/is_weight_mean"] },
  { title: "Teacher, nats/token", names: ["learner/teacher_divergence", "learner/teacher_advantage"] },
  { title: "Teacher, shares", names: ["learner/teacher_top", "teacher/failure_share"] },
  { title: "Preference, shares", names: ["learner/dpo_accuracy"] },
  { title: "Preference, nats", names: ["learner/dpo_margin", "learner/dpo_preferred"] },
  { title: "Length, tokens", names: ["rollout/response_tokens_mean"] },
  {
    title: "Seconds of a step",
    names: ["wall/step_s", "learner/step_s", "judge/score_s", "teacher/teach_s", "teacher/exposed_s", "sync/publish_s"],
  },
  { title: "Memory, GB", names: ["wall/rss_gb"] },
];

const NOT_FIGURES = new Set(["time", "stage", "step", "overall"]);

/** The figures that any of the rows has. */
export function reported(rows) {
  const names = new Set();
  for (const row of rows) for (const [name, value] of Object.entries(row)) if (value !== null) names.add(name);
  return [...names].filter((name) => !NOT_FIGURES.has(name)).sort();
}

/** A panel's figures among those reported. */
export function figuresOf(panel, names) {
  if (panel.prefix) return names.filter((name) => name.startsWith(panel.prefix));
  return (panel.names ?? []).filter((name) => names.includes(name));
}
