// The choice of a data set: only what has been read can be chosen; more are uploaded or taken from what is built in.
import { element, get, say, send } from "./common.js";

const POLL_MS = 2000;
const select = document.getElementById("dataset");
const told = document.getElementById("dataset-state");
const wrong = document.getElementById("dataset-error");
const more = document.getElementById("more-datasets");
let shown = "";
let wanted = "";  // what to choose as soon as it is ready
let timer = 0;

function text(dataset) {
  const { classes, pictures } = dataset.summary;
  if (dataset.state === "ready") return `${dataset.name}: ${classes?.length ?? "?"} classes, ${pictures ?? "?"} pictures`;
  return `${dataset.name}: ${dataset.state === "failed" ? "could not be read" : "being read"}`;
}

function fill(datasets) {
  const now = JSON.stringify(datasets.map((each) => [each.id, each.state]));
  if (now === shown) return;
  shown = now;
  const kept = select.value;
  const ready = datasets.filter((each) => each.state === "ready");
  select.replaceChildren(element("option", ready.length ? "Choose one" : "None is ready", { value: "" }));
  for (const dataset of [...datasets].reverse()) {
    const option = element("option", text(dataset), { value: dataset.id });
    option.disabled = dataset.state !== "ready";
    select.append(option);
  }
  const chosen = ready.some((each) => each.id === wanted) ? wanted : kept;
  if (chosen === wanted) wanted = "";
  select.value = chosen || (ready.length === 1 && !wanted ? ready[0].id : "");
  if (ready.length === 0) more.open = true;
  const named = datasets.find((each) => each.id === wanted);
  if (named?.state === "failed") {
    say(wrong, `${named.name} could not be read: ${named.reason ?? "no reason is known"}`);
    wanted = "";
  }
  const pending = datasets.filter((each) => each.state === "pending").map((each) => each.name);
  say(told, pending.length > 0 ? `Being read: ${pending.join(", ")}. It can be chosen once that is done.` : "");
  if (select.value !== kept) select.dispatchEvent(new Event("input", { bubbles: true }));
}

async function poll() {
  clearTimeout(timer);
  try {
    const datasets = await get("/datasets");
    fill(datasets);
    if (datasets.some((each) => each.state === "pending")) timer = setTimeout(poll, POLL_MS);
  } catch (error) {
    say(told, `The server does not answer (${error.message}); trying again.`);
    timer = setTimeout(poll, POLL_MS);
  }
}

async function add(button, body) {
  button.disabled = true;
  say(wrong, "");
  try {
    wanted = (await send("/datasets", body)).id;
    shown = "";
    await poll();
  } catch (error) {
    say(wrong, error.message);
  }
  button.disabled = false;
}

/** Lists the data sets, and goes on until none is being read. ``first``: the one to choose. */
export function startDatasets(first = "") {
  wanted = first;
  for (const button of document.querySelectorAll("[data-builtin]")) {
    button.addEventListener("click", () => add(button, { builtin: button.dataset.builtin }));
  }
  const file = document.getElementById("zip");
  const upload = document.getElementById("upload");
  upload.addEventListener("click", () => {
    if (file.files.length === 0) return say(wrong, "Choose a zip file first.");
    const form = new FormData();
    form.append("file", file.files[0]);
    return add(upload, form);
  });
  return poll();
}
