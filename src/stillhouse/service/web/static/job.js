import { budget, cell, duration, element, fixed, get, percent, side, state, words } from "./common.js";

const status = document.getElementById("state");
const id = status.dataset.job;
const axis = document.getElementById("axis");
const plot = document.getElementById("plot");
const AXES = { macs: [1e6, "M MACs"], image_bytes: [1, "bytes per picture"], latency_ms: [1, "latency, ms (median)"],
  model_bytes: [1e3, "model, kB"], memory_bytes: [1e6, "peak memory, MB"], params: [1e6, "M parameters"] };
let front = null;
let drawn = "";

function trained(entry) {
  return words(entry.variant) + (entry.variant === "distilled" && entry.method ? ` (${entry.method})` : "");
}

function title(entry) {
  return `${entry.arch}<br>${side(entry.image_size)} → ${side(entry.network_size)} px, ${entry.stem}<br>${trained(entry)}`;
}

// How the model was trained, and what the same network reaches when it is trained in other ways.
function training(entry) {
  const box = element("span", trained(entry));
  for (const [variant, figure] of Object.entries(entry.baselines)) {
    box.append(element("small", `${words(variant)}: ${percent(figure.accuracy)}`, { class: "compared" }));
  }
  if (entry.note) box.append(element("small", entry.note, { class: "compared upset" }));
  return box;
}

function trace(entries, name, colour, size, symbol = "circle") {
  const [unit, label] = AXES[axis.value];
  const known = entries.filter((entry) => entry[axis.value] !== null).sort((a, b) => a[axis.value] - b[axis.value]);
  return {
    name, type: "scatter", mode: "markers",
    x: known.map((entry) => entry[axis.value] / unit),
    y: known.map((entry) => 100 * entry.accuracy),
    error_y: { type: "data", symmetric: false, color: colour, thickness: 1, width: 3,
      array: known.map((entry) => 100 * (entry.accuracy_high - entry.accuracy)),
      arrayminus: known.map((entry) => 100 * (entry.accuracy - entry.accuracy_low)) },
    customdata: known.map((entry) => [title(entry), entry.links.onnx]),
    hovertemplate: `%{customdata[0]}<br>%{y:.1f} %, %{x:.4g} ${label}<extra>${name}</extra>`,
    marker: { color: colour, size, symbol },
  };
}

function draw() {
  const any = front.front.length + front.others.length > 0;
  const compared = front.compared.length ? [trace(front.compared, "same networks, trained otherwise", "#8c979e", 9, "diamond-open")] : [];
  const none = document.getElementById("no-front");
  none.hidden = any;
  none.textContent = ["queued", "running"].includes(front.state)
    ? "No trained model yet: points appear as trials end." : "The job ended without a trained model.";
  plot.hidden = !any;
  const now = JSON.stringify([axis.value, front]);
  if (!any || now === drawn) return;
  drawn = now;
  const ink = getComputedStyle(document.body).color;
  const line = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
  const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  const split = front.state === "done" ? "test" : "validation";
  const traces = [trace(front.others, "other models (validation)", "#8c979e", 8), ...compared, trace(front.front, "front", accent, 12)];
  Plotly.react(plot, traces, {
    margin: { l: 56, r: 16, t: 8, b: 48 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: ink, family: "system-ui, sans-serif" }, legend: { orientation: "h", y: 1.08 }, hovermode: "closest",
    xaxis: { title: { text: AXES[axis.value][1] }, gridcolor: line, rangemode: "tozero" },
    yaxis: { title: { text: `${split} accuracy, %` }, gridcolor: line },
  }, { responsive: true, displayModeBar: false });
  if (!plot.dataset.ready) {
    plot.dataset.ready = "yes";
    plot.on("plotly_click", (event) => { location.href = event.points[0].customdata[1]; });
  }
}

function listFront() {
  const table = document.getElementById("front");
  table.hidden = front.front.length === 0;
  const body = table.tBodies[0];
  body.replaceChildren();
  for (const entry of [...front.front].sort((a, b) => b.accuracy - a.accuracy)) {
    const row = body.insertRow();
    cell(row, entry.arch);
    cell(row, `${side(entry.image_size)} → ${side(entry.network_size)}`);
    cell(row, entry.stem);
    cell(row, training(entry));
    cell(row, `${percent(entry.accuracy)} (${fixed(100 * entry.accuracy_low, 1)}–${fixed(100 * entry.accuracy_high, 1)})`,
      { number: true });
    cell(row, percent(entry.accuracy_coded), { number: true });
    cell(row, fixed(entry.macs / 1e6, 1), { number: true });
    cell(row, fixed(entry.image_bytes, 0), { number: true });
    cell(row, `${fixed(entry.latency_ms, 2)} (${fixed(entry.latency_p95_ms, 2)})`, { number: true });
    cell(row, fixed(entry.model_bytes / 1e3, 0), { number: true });
    cell(row, element("a", "ONNX", { href: entry.links.onnx, download: entry.file,
      "aria-label": `Download ${entry.file}` }));
  }
}

function fact(list, name, value) {
  const box = document.createElement("div");
  box.append(element("dt", name), element("dd", value));
  list.append(box);
}

function now(trial) {
  if (trial.reason) return trial.reason;
  if (!trial.running) return "";
  const { kind, progress } = trial.running;
  const box = element("span", `${kind} `);
  if (progress.total) {
    box.append(element("progress", "", { max: progress.total, value: progress.done, "aria-label": `${kind} progress` }));
  }
  return box;
}

function list(job) {
  status.replaceChildren(state(job), job.reason ? `: ${job.reason}` : "");
  const facts = document.getElementById("facts");
  facts.replaceChildren();
  fact(facts, "Budget", budget(job.spec.budget));
  fact(facts, "Method", `${job.spec.method}, teacher ${job.spec.teacher} at ${job.spec.teacher_size} px`);
  fact(facts, "Trials", `${job.trials_ended} of ${job.trials_wanted}`);
  fact(facts, "Best on validation", percent(job.best_accuracy));
  const searched = job.trials.length > 0 && job.trials.every((trial) => ["done", "failed", "infeasible", "stopped"].includes(trial.state));
  if (job.state === "running" && searched && job.trials_ended >= job.trials_wanted) fact(facts, "Now", "comparing, reading the test split");
  else if (job.state === "running") fact(facts, "Left, about", duration(job.eta_s));
  else if (job.started_at && job.finished_at) fact(facts, "Took", duration(job.finished_at - job.started_at));
  const body = document.getElementById("trials").tBodies[0];
  body.replaceChildren();
  for (const trial of job.trials) {
    const row = body.insertRow();
    const { arch, image_size, network_size, stem } = trial.candidate;
    cell(row, String(trial.number));
    cell(row, `${arch} ${image_size} → ${network_size} ${stem}`);
    cell(row, state(trial));
    cell(row, fixed(trial.cost.macs / 1e6, 1), { number: true });
    const early = trial.epochs && trial.epochs < job.spec.epochs.student ? ` (epoch ${trial.epochs})` : "";
    cell(row, percent(trial.val_accuracy) + early, { number: true });
    cell(row, now(trial), { wrap: true });
  }
}

async function refresh() {
  let again = true;
  try {
    const job = await get(`/jobs/${id}`);
    front = await get(`/jobs/${id}/pareto`);
    list(job);
    listFront();
    draw();
    again = ["queued", "running"].includes(job.state);
  } catch (error) {
    status.textContent = `The server does not answer (${error.message}); trying again.`;
  }
  if (again) setTimeout(refresh, 1500);
}

axis.addEventListener("change", () => front && draw());
refresh();
