// Building the page. Whatever a model, a manifest or a file wrote becomes text here, never markup.

/** An element. `properties` are its own (className, href, ...); children are nodes or text, and null is left out. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Put children, as `el` takes them, in the place of what `node` holds. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** A table. `columns` are {title, text, cell}; `text` sets a column to the left, `cell(row)` gives text or a node. */
export function table(columns, rows) {
  const align = (column) => [column.text ? "text" : "", column.long ? "long" : ""].join(" ").trim();
  const head = columns.map((c) => el("th", { scope: "col", className: align(c) }, c.title));
  const lines = rows.map((row) => el("tr", {}, columns.map((c) => el("td", { className: align(c) }, c.cell(row)))));
  return el("div", { className: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, lines)));
}

/** A number in as few digits as tell it apart. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

export function percent(share) {
  return share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

/** Options of a select, keeping its choice where that is still offered. `options` are [value, label]. */
export function setOptions(select, options, chosen) {
  const now = JSON.stringify(options);
  if (select.dataset.options !== now) {
    select.dataset.options = now;
    select.replaceChildren(...options.map(([value, label]) => el("option", { value }, label)));
  }
  select.value = chosen;
}
