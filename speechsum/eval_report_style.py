"""How an evaluation's page looks: by the reader's own choice of dark or light, and without anything from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1d2421; --quiet: #5d6964; --line: #dcdfdb;
  --accent: #1f7a5c; --unsaid: #ffe2a8; --unsaid-ink: #4d3200; --bad: #b3362a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181a; --card: #1c2225; --ink: #e6eae8; --quiet: #9aa7a2; --line: #333c40;
    --accent: #5cc9a3; --unsaid: #5b4312; --unsaid-ink: #ffe7b8; --bad: #ff8d80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif;
}
h1, h2, h3, h4 { line-height: 1.25; margin: 0; text-wrap: balance; }
h1 { font-size: 1.8rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 0.75rem; }
h3 { font-size: 1rem; overflow-wrap: anywhere; }
h4 { font-size: 0.9rem; color: var(--accent); overflow-wrap: anywhere; }
p { margin: 0.4rem 0; }
.quiet { color: var(--quiet); font-size: 0.875rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 400; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.25rem; }
figure { margin: 0; }
figcaption { font-size: 0.9rem; font-weight: 600; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--quiet); font-size: 11px; }
svg .grid { stroke: var(--line); }
svg .interval { stroke: var(--accent); stroke-width: 2; stroke-linecap: round; }
svg circle { fill: var(--accent); }
article { border-top: 1px solid var(--line); padding: 1.25rem 0; }
audio { width: 100%; max-width: 30rem; margin: 0.6rem 0; display: block; }
dl { display: grid; grid-template-columns: 6rem 1fr; gap: 0.2rem 0.75rem; margin: 0.5rem 0; }
dl.meanings { grid-template-columns: 12rem 1fr; font-size: 0.9rem; }
dt { color: var(--quiet); }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem; margin-top: 0.9rem;
}
.answer { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem 1rem; }
.summary { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.5rem 0 0.75rem; }
mark { background: var(--unsaid); color: var(--unsaid-ink); border-radius: 3px; padding: 0 0.15em; }
.failed { color: var(--bad); }
.breakdown td, .breakdown th { font-size: 0.8rem; padding: 0.1rem 0.9rem 0.1rem 0; border: 0; color: var(--quiet); }
details { margin-top: 0.5rem; font-size: 0.9rem; }
details > summary { cursor: pointer; color: var(--quiet); }
details p { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
