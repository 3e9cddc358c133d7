// The two plots of a job: accuracy over cost, and how the front grew.
import { duration, side } from "./common.js";
import { codec, judged, trained } from "./models.js";

/** Cost -> how much one unit is, axis title. */
export const AXES = { macs: [1e6, "M MACs"], image_bytes: [1, "bytes per picture"], latency_ms: [1, "latency, ms (median)"],
  model_bytes: [1e3, "model, kB"], memory_bytes: [1e6, "peak memory, MB"], params: [1e6, "M parameters"] };
const GREY = "#8c979e";
const drawn = new WeakMap();  // plot -> what it shows, as text

function title(entry) {
  const sent = entry.quality === null || entry.quality === undefined ? "" : `, ${codec(entry)}`;
  return `${entry.arch}<br>${side(entry.image_size)} → ${side(entry.network_size)} px, ${entry.stem}<br>`
    + `${entry.precision ?? ""}${sent}<br>${trained(entry)}`;
}

function trace(entries, by, axis, { label, colour, size, symbol = "circle" }) {
  const [unit, unitText] = AXES[axis];
  const known = entries.filter((entry) => drawable(entry, by, axis)).sort((a, b) => a[axis] - b[axis]);
  const figures = known.map((entry) => judged(entry, by));
  return {
    name: label, type: "scatter", mode: "markers",
    x: known.map((entry) => entry[axis] / unit),
    y: figures.map((figure) => 100 * figure.value),
    error_y: { type: "data", symmetric: false, color: colour, thickness: 1, width: 3,
      array: figures.map((figure) => 100 * (figure.high - figure.value)),
      arrayminus: figures.map((figure) => 100 * (figure.value - figure.low)) },
    customdata: known.map((entry) => [title(entry), entry.links.onnx]),
    hovertemplate: `%{customdata[0]}<br>%{y:.1f} %, %{x:.4g} ${unitText}<extra>${label}</extra>`,
    marker: { color: colour, size, symbol },
  };
}

function drawable(entry, by, axis) {
  return entry[axis] !== null && entry[axis] !== undefined && judged(entry, by) !== null;
}

function colours() {
  const root = getComputedStyle(document.documentElement);
  const value = (name) => root.getPropertyValue(name).trim();
  return { ink: getComputedStyle(document.body).color, line: value("--line"), accent: value("--accent"), doubt: value("--doubt") };
}

function layout({ ink, line }, x, y) {
  return { margin: { l: 56, r: 16, t: 8, b: 48 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: ink, family: "system-ui, sans-serif" }, hovermode: "closest",
    xaxis: { title: { text: x }, gridcolor: line, rangemode: "tozero" }, yaxis: { title: { text: y }, gridcolor: line } };
}

// True the first time that a plot is to show this.
function isNew(plot, shown) {
  const now = JSON.stringify(shown);
  if (drawn.get(plot) === now) return false;
  drawn.set(plot, now);
  return true;
}

function traces(front, axis, { accent, doubt }) {
  const by = front.judged;
  const doubted = new Set(front.in_doubt);
  const parts = [
    [front.others, { label: "other models (validation)", colour: GREY, size: 8 }],
    [front.compared, { label: "same networks, trained otherwise", colour: GREY, size: 9, symbol: "diamond-open" }],
    [front.family, { label: "same networks, other precision or quality", colour: accent, size: 6, symbol: "circle-open" }],
  ].map(([entries, look]) => [entries.filter((entry) => !doubted.has(entry.model)), look]);
  const all = [...front.others, ...front.compared, ...front.family];
  parts.push([all.filter((entry) => doubted.has(entry.model)),
    { label: "in doubt: not ruled out beyond noise", colour: doubt, size: 9, symbol: "square" }]);
  parts.push([front.front, { label: "front", colour: accent, size: 12 }]);
  return parts.filter(([entries, look]) => entries.length > 0 || look.label === "front")
    .map(([entries, look]) => trace(entries, by, axis, look));
}

/** How many models cannot be drawn, for want of a figure. */
export function undrawn(front, axis) {
  const all = [...front.front, ...front.others, ...front.compared, ...front.family];
  return all.filter((entry) => !drawable(entry, front.judged, axis)).length;
}

/** Accuracy, with its interval, over the cost that is chosen; a click on a point downloads the model. */
export function drawFront(plot, front, axis) {
  if (!isNew(plot, [axis, front])) return;
  const look = colours();
  const split = front.state === "done" ? "test" : "validation";
  const y = `${split} accuracy${front.judged === "coded" ? " as sent" : ""}, %`;
  Plotly.react(plot, traces(front, axis, look),
    { ...layout(look, AXES[axis][1], y), legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 } },
    { responsive: true, displayModeBar: false });
  if (!plot.dataset.ready) {
    plot.dataset.ready = "yes";
    plot.on("plotly_click", (event) => { location.href = event.points[0].customdata[1]; });
  }
}

const after = ({ trials, at }) => `${trials} trial${trials === 1 ? "" : "s"}, ${duration(at)}`;

/** The share of the present front's hypervolume over the seconds since the job began; gives it in words. */
export function drawGrowth(plot, progress) {
  const last = progress.at(-1);
  const told = `95 % of it after ${after(progress.find((point) => point.hypervolume >= 0.95) ?? last)}; now ${after(last)}`;
  if (!isNew(plot, progress)) return told;
  const [unit, unitText] = last.at < 180 ? [1, "seconds"] : last.at < 3 * 3600 ? [60, "minutes"] : [3600, "hours"];
  const look = colours();
  const made = layout(look, `${unitText} since the job began`, "% of the present front");
  made.yaxis.rangemode = "tozero";
  Plotly.react(plot, [{
    type: "scatter", mode: "lines+markers", name: "front", line: { shape: "hv", color: look.accent }, marker: { size: 6 },
    x: progress.map((point) => point.at / unit), y: progress.map((point) => 100 * point.hypervolume),
    customdata: progress.map((point) => point.trials), hovertemplate: "%{y:.1f} % after %{customdata} trials<extra></extra>",
  }], { ...made, showlegend: false }, { responsive: true, displayModeBar: false });
  return told;
}
