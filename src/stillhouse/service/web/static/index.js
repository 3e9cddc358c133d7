import { budget, cell, element, get, percent, state } from "./common.js";

const message = document.getElementById("message");
const table = document.getElementById("jobs");
const older = document.getElementById("older");
const STEP = 100;
let wanted = STEP;
let timer = 0;

function show(jobs) {
  table.hidden = jobs.length === 0;
  message.replaceChildren();
  if (jobs.length === 0) {
    message.append(document.getElementById("empty").content.cloneNode(true));
    return;
  }
  const body = table.tBodies[0];
  body.replaceChildren();
  for (const job of jobs) {
    const row = body.insertRow();
    cell(row, element("a", job.id, { href: `/ui/jobs/${job.id}` }));
    cell(row, job.dataset_name);
    cell(row, budget(job.spec.budget), { wrap: true });
    cell(row, state(job));
    cell(row, `${job.trials_ended} of ${job.trials_wanted}`, { number: true });
    cell(row, percent(job.best_accuracy), { number: true });
  }
}

async function refresh() {
  clearTimeout(timer);
  let wait = 2000;
  try {
    const jobs = await get(`/jobs?limit=${wanted}`);
    show(jobs);
    older.hidden = jobs.length < wanted || wanted >= 1000;
    if (!jobs.some((job) => ["queued", "running"].includes(job.state))) wait = 10000;
  } catch (error) {
    message.textContent = `The server does not answer (${error.message}); trying again.`;
  }
  timer = setTimeout(refresh, wait);
}
older.addEventListener("click", () => {
  wanted += STEP;
  refresh();
});
refresh();
