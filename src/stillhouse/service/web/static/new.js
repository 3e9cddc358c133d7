// The form that starts a job. What it shows of the search comes from the API's schema and the workers' catalogue.
import { element, get, say, send } from "./common.js";
import { startDatasets } from "./datasets.js";
import { showEstimate } from "./estimate.js";
import { field as fieldOf, knobsField, limitField, readAll } from "./fields.js";

const DEBOUNCE_MS = 300;
const MAIN = ["trials", "max_wall_s", "method", "ablate", "teacher", "teacher_size", "epochs", "objectives"];
const FIRST = ["sampler", "eta", "max_device_s", "min_gain", "seed"];  // of the advanced ones
const form = document.getElementById("new-job");
const select = document.getElementById("dataset");
const submit = document.getElementById("submit");
const failure = document.getElementById("failure");
const count = document.getElementById("count");
const rest = document.getElementById("estimate-rest");
const OTHER_WORDS = ["max_flops", "max_kbit_per_s", "frames_per_s"];  // for limits that have a field
const wrong = element("small", "", { id: "wrong", class: "upset" });
let key = newKey();
let budget = [];
let search = [];
let timer = 0;
let asking = null;
let filled = "";  // what the form held when it was last looked at

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function body() {
  return { dataset: select.value, budget: readAll(budget), search: readAll(search) };
}

// Marks the field that the server's message names first, says the message there too, and gives the field back.
function mark(message) {
  wrong.remove();
  for (const old of form.querySelectorAll("[aria-invalid]")) old.removeAttribute("aria-invalid");
  let found = null;
  let at = Infinity;
  for (const control of form.querySelectorAll("[id^=field-]")) {
    const place = message.search(new RegExp(`(?<![\\w])${control.id.slice(6).replaceAll(".", "\\.")}(?!\\w)`));
    if (place >= 0 && place <= at) [found, at] = [control, place];
  }
  if (found) {
    found.setAttribute("aria-invalid", "true");
    found.setAttribute("aria-errormessage", wrong.id);
    wrong.textContent = message;
    (found.tagName === "FIELDSET" ? found : found.parentElement).append(wrong);
  }
  return found;
}

async function estimate() {
  asking?.abort();
  if (select.value === "") {
    count.className = "count";
    say(count, "What fits is counted once a data set is chosen.");
    rest.replaceChildren();
    return;
  }
  const mine = new AbortController();
  asking = mine;
  try {
    const found = await send("/estimates", body(), { signal: mine.signal });
    if (mine.signal.aborted) return;
    mark("");
    showEstimate(count, rest, found);
  } catch (error) {
    if (mine.signal.aborted) return;
    count.className = "count upset";
    say(count, error.message);
    rest.replaceChildren();
    mark(error.message);
  }
}

// Browsers tell of one change by "input", "change" or both.
function changed() {
  const now = JSON.stringify(body());
  if (now === filled) return;
  filled = now;
  key = newKey();  // another filling, another job
  say(failure, "");
  clearTimeout(timer);
  timer = setTimeout(estimate, DEBOUNCE_MS);
}

async function start(event) {
  event.preventDefault();
  submit.disabled = true;
  say(failure, "");
  try {
    const job = await send("/jobs", body(), { headers: { "Idempotency-Key": key } });
    location.assign(`/ui/jobs/${encodeURIComponent(job.id)}`);
  } catch (error) {
    submit.disabled = false;
    say(failure, error.message);
    const field = mark(error.message);
    if (field?.closest("details")) field.closest("details").open = true;
    (field ?? submit).focus();
  }
}

function build(schemas, catalogue) {
  const { device, ...limits } = schemas.Limits.properties;
  const own = Object.entries(limits).filter(([name]) => !OTHER_WORDS.includes(name));
  budget = own.map(([name, schema]) => limitField(name, schema.description));
  const devices = [device.default, ...Object.keys(catalogue.devices ?? {}).sort()];
  budget.push(fieldOf("device", device, { schemas, choices: { device: devices }, suggestions: {} }));
  document.getElementById("budget").append(...budget.map((made) => made.node));
  const methods = catalogue.methods ?? {};
  const pretrained = Object.values(catalogue.weights ?? {}).flat();
  const known = {
    schemas, choices: { ...(catalogue.methods ? { method: Object.keys(methods).sort() } : {}),
      ...(catalogue.tasks ? { task: catalogue.tasks } : {}) },
    suggestions: { teacher: [...new Set([...pretrained, ...(catalogue.names ?? [])])] },
  };
  const properties = schemas.Search.properties;
  const names = Object.keys(properties);
  const order = (list) => list.filter((name) => names.includes(name));
  const others = names.filter((name) => !MAIN.includes(name) && !FIRST.includes(name));
  const method = () => document.getElementById("field-method").value;
  const make = (name) => (name === "knobs" && catalogue.methods
    ? knobsField(name, methods, method) : fieldOf(name, properties[name], known));
  for (const [place, list] of [["search", order(MAIN)], ["advanced", [...order(FIRST), ...others]]]) {
    for (const name of list) {
      const made = make(name);
      search.push(made);
      document.getElementById(place).append(made.node);
    }
  }
  const knobs = search.find((made) => made.show);
  document.getElementById("field-method")?.addEventListener("change", () => knobs?.show());
}

function fillFrom(spec) {
  for (const made of budget) made.fill(spec.budget[made.name]);
  // Knobs come last: which there are hangs on the method.
  for (const made of [...search].sort((a, b) => Number("show" in a) - Number("show" in b))) {
    if (made.name in spec) made.fill(spec[made.name]);
  }
  const advanced = document.getElementById("advanced");
  const told = search.filter((made) => advanced.contains(made.node));
  advanced.closest("details").open = Object.keys(readAll(told)).length > 0;  // nothing unusual is hidden
}

async function begin() {
  const like = new URLSearchParams(location.search).get("like");
  const note = document.getElementById("like");
  let dataset = "";
  try {
    const catalogue = await get("/catalogue").catch((error) => {
      say(failure, error.message);
      return {};
    });
    build((await get("/openapi.json")).components.schemas, catalogue);
    if (like) {
      const job = await get(`/jobs/${encodeURIComponent(like)}`);
      fillFrom(job.spec);
      dataset = job.spec.dataset;
      note.append("Filled in from ", element("a", like, { href: `/ui/jobs/${encodeURIComponent(like)}` }), ".");
      note.hidden = false;
    }
  } catch (error) {
    say(failure, error.message);
  }
  await startDatasets(dataset);
  filled = JSON.stringify(body());
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("submit", start);
  await estimate();
}

// A page that comes back from the browser's own cache has its button as it was left.
addEventListener("pageshow", (event) => { if (event.persisted) [submit.disabled, key] = [false, newKey()]; });
begin();
