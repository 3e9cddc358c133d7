// What the pages share. Text always goes in as text, never as HTML: names come from users.
export const percent = (x) => (x === null || x === undefined ? "–" : (100 * x).toFixed(1) + " %");
export const fixed = (x, digits) => (x === null || x === undefined ? "–" : x.toFixed(digits));
export const side = (size) => (Array.isArray(size) ? size.join("×") : String(size));
export const short = (x) => +x.toPrecision(3);
const VARIANTS = { distilled: "distilled", no_teacher: "no teacher", plain_kd: "plain KD" };
export const words = (variant) => VARIANTS[variant] ?? variant.replaceAll("_", " ");

// Limit -> how much one unit is, the unit in a sentence, the label of its field, the unit beside the field.
export const LIMITS = {
  max_macs: [1e6, "M MACs", "Multiply-accumulates, at most", "million (1 MAC = 2 FLOPs)"],
  max_params: [1e6, "M parameters", "Parameters, at most", "million"],
  max_model_bytes: [1e3, "kB model", "Model file, at most", "kB"],
  max_image_bytes: [1, "bytes/picture", "Bytes per picture, at most", "bytes"],
  max_image_size: [1, "px", "Picture size, at most", "pixels: 64, or 48x64 (height x width)"],
  max_latency_ms: [1, "ms", "Latency, at most", "ms (median, one picture)"],
  max_memory_bytes: [1e6, "MB memory", "Peak memory, at most", "MB"],
  min_accuracy: [0.01, "%", "Accuracy, at least", "%"],
};

async function answered(answer) {
  if (answer.ok) return answer.json();
  if (answer.status === 401) location.reload();  // signed out meanwhile: the page itself then asks for a key
  const problem = await answer.json().catch(() => ({}));
  throw new Error([problem.detail ?? `${answer.status} ${answer.statusText}`, ...(problem.faults ?? [])].join("; "));
}

export async function get(url) {
  return answered(await fetch(url));
}

// Posts JSON, or a form with a file as it is.
export async function send(url, body, { headers = {}, signal } = {}) {
  const json = !(body instanceof FormData);
  return answered(await fetch(url, {
    method: "POST", signal, headers: json ? { "Content-Type": "application/json", ...headers } : headers,
    body: json ? JSON.stringify(body) : body,
  }));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function cell(row, text, { number = false, wrap = false } = {}) {
  const td = row.insertCell();
  const heading = row.closest("table").tHead.rows[0].cells[td.cellIndex];
  td.dataset.label = heading.textContent;  // shown on narrow screens, where a row is a card
  if (text instanceof Node) td.append(text);
  else td.textContent = text;
  if (number) td.classList.add("number");
  if (wrap) td.classList.add("wrap");
  return td;
}

export function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A table with these headings; a heading that begins with "#" is of a column of numbers.
export function tableOf(caption, headings) {
  const table = document.createElement("table");
  table.append(element("caption", caption, { class: "visually-hidden" }));
  const row = table.createTHead().insertRow();
  for (const text of headings) {
    row.append(element("th", text.replace(/^#/, ""), { scope: "col", class: text.startsWith("#") ? "number" : "" }));
  }
  table.createTBody();
  return table;
}

// Says a text in a live region, once: the same text again would be read out again.
export function say(region, text) {
  if (region.textContent !== text) region.textContent = text;
}

export function state(job) {
  return element("span", job.state, { class: `state ${job.state}` });
}

export function limit(name, value) {
  if (name === "max_image_size") return `≤ ${value} px`;
  if (name === "min_accuracy") return `≥ ${percent(value)}`;
  const [unit, label] = LIMITS[name] ?? [1, name];
  return `≤ ${short(value / unit)} ${label}`;
}

export function budget(limits) {
  const parts = Object.entries(limits).filter(([name]) => name !== "device").map(([name, value]) => limit(name, value));
  if (limits.device && limits.device !== "local") parts.push(`on ${limits.device}`);
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(", ") || "no limit";
}
