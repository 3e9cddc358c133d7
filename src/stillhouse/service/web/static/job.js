import { budget, cell, duration, element, fixed, get, percent, say, send, state } from "./common.js";
import { listDoubt, listFront } from "./front.js";
import { arranged } from "./models.js";
import { drawFront, drawGrowth, undrawn } from "./plots.js";

const status = document.getElementById("state");
const id = status.dataset.job;
const axis = document.getElementById("axis");
const plot = document.getElementById("plot");
const cancel = document.getElementById("cancel");
const failure = document.getElementById("failure");
const LIVE = ["queued", "running"];
const ENDED = ["done", "failed", "infeasible", "stopped"];
let front = null;
let timer = 0;

function draw() {
  const any = front.front.length + front.others.length > 0;
  const none = document.getElementById("no-front");
  none.hidden = any;
  none.textContent = LIVE.includes(front.state)
    ? "No trained model yet: points appear as trials end." : "The job ended without a trained model.";
  plot.hidden = !any;
  document.getElementById("judged").hidden = front.judged !== "coded" || !any;
  if (any) drawFront(plot, front, axis.value);
  const missing = any ? undrawn(front, axis.value) : 0;
  const note = document.getElementById("undrawn");
  note.hidden = missing === 0;
  say(note, `${missing} not drawn: the accuracy or the cost that is shown here is not known.`);
}

function growth(progress) {
  const section = document.getElementById("growth");
  section.hidden = !progress || progress.length < 2;
  if (!section.hidden) say(document.getElementById("growth-told"), drawGrowth(document.getElementById("growth-plot"), progress));
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

function head(job) {
  const told = job.reason ? `: ${job.reason}` : "";
  if (status.textContent !== job.state + told) status.replaceChildren(state(job), told);
  cancel.hidden = !LIVE.includes(job.state);
  const facts = document.getElementById("facts");
  facts.replaceChildren();
  fact(facts, "Budget", budget(job.spec.budget));
  fact(facts, "Method", `${job.spec.method}, teacher ${job.spec.teacher} at ${job.spec.teacher_size} px`);
  fact(facts, "Trials", `${job.trials_ended} of ${job.trials_wanted}`);
  fact(facts, "Best on validation", percent(job.best_accuracy));
  const searched = job.trials.length > 0 && job.trials.every((trial) => ENDED.includes(trial.state));
  if (job.state === "running" && searched && job.trials_ended >= job.trials_wanted) fact(facts, "Now", "comparing, reading the test split");
  else if (job.state === "running") fact(facts, "Left, about", duration(job.eta_s));
  else if (job.started_at && job.finished_at) fact(facts, "Took", duration(job.finished_at - job.started_at));
}

function listTrials(job) {
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
  clearTimeout(timer);
  let again = true;
  try {
    const job = await get(`/jobs/${id}`);
    front = arranged(await get(`/jobs/${id}/pareto`));
    head(job);
    listTrials(job);
    listFront(document.getElementById("front"), front);
    listDoubt(document.getElementById("doubt"), front);
    draw();
    growth(front.progress ?? job.progress);
    again = LIVE.includes(job.state);
  } catch (error) {
    say(status, `The server does not answer (${error.message}); trying again.`);
  }
  clearTimeout(timer);
  if (again) timer = setTimeout(refresh, 1500);
}

async function stop() {
  if (!confirm("Cancel this job? What it has finished stays.")) return;
  cancel.disabled = true;
  say(failure, "");
  try {
    await send(`/jobs/${id}/cancel`, {});
  } catch (error) {
    say(failure, error.message);
  }
  cancel.disabled = false;
  await refresh();
}

axis.addEventListener("change", () => front && draw());
cancel.addEventListener("click", stop);
refresh();
