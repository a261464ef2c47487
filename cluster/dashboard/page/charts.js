// One chart, drawn by plotly: curves over the step counted through all stages, a second run's dashed.
/* global Plotly */

const COLOURS = 8;
const MARKED_POINTS = 40;

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const [ink, quiet, line, card] = ["--ink", "--quiet", "--line", "--card"].map(read);
  return { ink, quiet, line, card, colour: (i) => read(`--s${i % COLOURS}`) };
}

function traces(curves, look) {
  return curves.map((curve) => ({
    x: curve.x,
    y: curve.y,
    name: curve.name,
    legendgroup: curve.figure, // what is hidden is hidden of both runs
    showlegend: !curve.dashed,
    type: "scatter",
    mode: curve.x.length <= MARKED_POINTS ? "lines+markers" : "lines",
    line: { color: look.colour(curve.colour), width: 2, dash: curve.dashed ? "dot" : "solid" },
    marker: { size: 5, symbol: curve.dashed ? "circle-open" : "circle" },
    hovertemplate: "%{y:.4g}",
  }));
}

/** Lines where a stage begins; none in a run of one stage. */
function stageMarks(starts, look) {
  const marks = starts.length > 1 ? starts : [];
  const line = { color: look.quiet, width: 1, dash: "dot" };
  const font = { size: 10, color: look.quiet };
  return {
    shapes: marks.map(({ x }) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line })),
    annotations: marks.map(({ x, name }) => ({
      x, y: 1, yref: "paper", text: escaped(name), showarrow: false, xanchor: "left", yanchor: "top", font,
    })),
  };
}

/** Plotly reads a few tags in texts; names from a recipe must not be any. */
export function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/**
 * Draw `curves` ({name, figure, x, y, colour, dashed}) into `node`, or redraw them there. Dragging zooms, a double
 * click zooms out; zoom and hidden curves outlast a redraw.
 */
export function draw(node, curves, starts) {
  const look = theme();
  const axis = { gridcolor: look.line, linecolor: look.line, zeroline: false, automargin: true };
  const layout = {
    uirevision: "same",
    paper_bgcolor: look.card,
    plot_bgcolor: look.card,
    font: { family: "system-ui, sans-serif", size: 11, color: look.ink },
    margin: { l: 44, r: 10, t: 8, b: 28 },
    xaxis: { ...axis, rangemode: "nonnegative" },
    yaxis: axis,
    hovermode: "x unified",
    hoverlabel: { bgcolor: look.card, bordercolor: look.line, font: { color: look.ink } },
    showlegend: curves.filter((curve) => !curve.dashed).length > 1,
    legend: { orientation: "h", y: -0.16, x: 0 },
    ...stageMarks(starts, look),
  };
  const settings = { displayModeBar: false, responsive: true }; // the bar has a button that would send a chart away
  Plotly.react(node, traces(curves, look), layout, settings);
}
