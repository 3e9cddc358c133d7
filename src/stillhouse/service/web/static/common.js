// What both pages share. Text always goes in as text, never as HTML: names come from users.
export const percent = (x) => (x === null || x === undefined ? "–" : (100 * x).toFixed(1) + " %");
export const fixed = (x, digits) => (x === null || x === undefined ? "–" : x.toFixed(digits));
export const side = (size) => (Array.isArray(size) ? size.join("×") : String(size));
const VARIANTS = { distilled: "distilled", no_teacher: "no teacher", plain_kd: "plain KD" };
export const words = (variant) => VARIANTS[variant] ?? variant.replaceAll("_", " ");
const UNITS = { max_macs: [1e6, "M MACs"], max_params: [1e6, "M parameters"], max_model_bytes: [1e3, "kB model"],
  max_image_bytes: [1, "bytes/picture"], max_latency_ms: [1, "ms"], max_memory_bytes: [1e6, "MB memory"] };

export async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return answer.json();
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

export function state(job) {
  return element("span", job.state, { class: `state ${job.state}` });
}

export function budget(limits) {
  const parts = Object.entries(limits).filter(([name]) => name !== "device").map(([name, value]) => {
    if (name === "max_image_size") return `≤ ${value} px`;
    if (name === "min_accuracy") return `≥ ${percent(value)}`;
    const [unit, label] = UNITS[name] ?? [1, name];
    return `≤ ${+(value / unit).toPrecision(3)} ${label}`;
  });
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(", ") || "no limit";
}
