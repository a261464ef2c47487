// Asking the server. Every answer is JSON; a failure carries the server's own sentence.

export async function ask(path, fields = {}) {
  const query = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== "" && value !== null));
  const answer = await fetch(`${path}?${query}`, { cache: "no-store" });
  const body = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}

export function runPath(run, rest) {
  return `/api/runs/${encodeURIComponent(run)}/${rest}`;
}

export function recordingPath(run, group) {
  return runPath(run, `groups/${group}/recording`);
}

/** The steps of one run, kept up to date by asking for what is new. */
export class Steps {
  constructor(run) {
    this.run = run;
    this.rows = [];
    this.generation = "";
  }

  /** Whether anything changed. A resumed run comes back under another generation, and its rows replace all. */
  async update() {
    const fields = { generation: this.generation, start: this.rows.length };
    const answer = await ask(runPath(this.run, "steps"), fields);
    const anew = answer.generation !== this.generation;
    this.generation = answer.generation;
    this.rows = this.rows.slice(0, answer.start).concat(answer.rows);
    return anew || answer.rows.length > 0;
  }
}
