// The models of a front as a table, each with its family, and those in doubt as a list.
import { cell, element, fixed, percent, tableOf, words } from "./common.js";
import { badges, codec, coded, download, familyOf, judged, name, pixels, ranked, share, trained } from "./models.js";

let shown = "";

// Network, why it is picked out, and which cheaper one it is not significantly better than.
function network(entry, front, byId) {
  const box = element("span", entry.arch);
  for (const badge of badges(entry, front.picks)) box.append(" ", badge);
  const cheaper = byId.get(front.tied[entry.model]);
  if (cheaper) {
    const sent = front.judged === "coded" ? ` at ${codec(cheaper)}` : "";
    box.append(element("small", `not significantly better than the cheaper ${name(cheaper)}${sent}`, { class: "compared tied" }));
  }
  return box;
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

function familyTable(members, by, caption) {
  const accuracy = by === "coded" ? "#Accuracy as sent" : "#Accuracy";
  const table = tableOf(caption, ["Precision", "Codec quality", accuracy, "#Bytes/picture", "#Latency ms", "#Model kB", "File"]);
  for (const entry of ranked(members, by)) {
    const row = table.tBodies[0].insertRow();
    cell(row, entry.precision ?? "–");
    cell(row, codec(entry));
    cell(row, share(judged(entry, by)), { number: true });
    cell(row, fixed(entry.image_bytes, 0), { number: true });
    cell(row, fixed(entry.latency_ms, 2), { number: true });
    cell(row, fixed(entry.model_bytes === null ? null : entry.model_bytes / 1e3, 0), { number: true });
    cell(row, download(entry));
  }
  return table;
}

function addFamily(body, entry, front, open) {
  const members = familyOf(entry, front.family);
  const leftOut = Object.entries(entry.left_out ?? {});
  if (members.length + leftOut.length === 0) return;
  const td = body.insertRow().insertCell();
  td.colSpan = body.closest("table").tHead.rows[0].cells.length;
  td.parentElement.className = "family";
  const details = element("details", "", { "data-model": entry.model });
  details.open = open.has(entry.model);
  const others = `family: ${members.length} other deployment${members.length === 1 ? "" : "s"} of ${entry.arch}`;
  details.append(element("summary", members.length ? others : `not offered: ${leftOut.map(([precision]) => precision).join(", ")}`));
  if (members.length > 0) details.append(familyTable(members, front.judged, `Other deployments of ${name(entry)}`));
  for (const [precision, why] of leftOut) details.append(element("p", `${precision} is left out: ${why}`, { class: "soft" }));
  td.append(details);
}

function addRow(body, entry, front, byId) {
  const row = body.insertRow();
  cell(row, network(entry, front, byId));
  cell(row, pixels(entry));
  cell(row, entry.stem);
  cell(row, training(entry));
  cell(row, entry.precision ?? "–");
  cell(row, codec(entry));
  cell(row, share({ value: entry.accuracy, low: entry.accuracy_low, high: entry.accuracy_high }), { number: true });
  cell(row, share(coded(entry)), { number: true });
  cell(row, fixed(entry.macs / 1e6, 1), { number: true });
  cell(row, fixed(entry.image_bytes, 0), { number: true });
  const latency = element("span", fixed(entry.latency_ms, 2));
  const where = [entry.latency_device, entry.latency_cpu, entry.latency_runtime].filter(Boolean);
  if (where.length > 0) latency.title = `${where.join(", ")}; threads: ${entry.latency_threads ?? "unknown"}`;
  latency.append(" ", element("small", `(${fixed(entry.latency_p95_ms, 2)})`, { class: "interval" }));
  cell(row, latency, { number: true });
  cell(row, fixed(entry.model_bytes / 1e3, 0), { number: true });
  cell(row, download(entry));
}

const keyOf = (item) => item.getAttribute("href") ?? item.closest("details")?.dataset.model;

/** Fills the table, most accurate first by the accuracy that the front is chosen by. What is open stays open, and the focus where it was. */
export function listFront(table, front) {
  const now = JSON.stringify(front);
  if (now === shown) return;
  shown = now;
  table.hidden = front.front.length === 0;
  const body = table.tBodies[0];
  const open = new Set([...body.querySelectorAll("details[open]")].map((details) => details.dataset.model));
  const byId = new Map(front.front.map((entry) => [entry.model, entry]));
  const focused = body.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  body.replaceChildren();
  for (const entry of ranked(front.front, front.judged)) {
    addRow(body, entry, front, byId);
    addFamily(body, entry, front, open);
  }
  if (focused) [...body.querySelectorAll("a, summary")].find((item) => keyOf(item) === focused)?.focus();
}

/** Models off the front that the pictures do not rule out. */
export function listDoubt(section, front) {
  const all = [...front.others, ...front.compared, ...front.family];
  const found = front.in_doubt.map((id) => all.find((entry) => entry.model === id)).filter(Boolean);
  section.hidden = found.length === 0;
  const list = section.querySelector("ul");
  if (list.dataset.shown === JSON.stringify(found)) return;
  list.dataset.shown = JSON.stringify(found);
  list.replaceChildren(...found.map((entry) => {
    const item = element("li", `${name(entry)}, ${trained(entry)}: `);
    item.append(share(judged(entry, front.judged)), `, ${fixed(entry.macs / 1e6, 1)} M MACs, `, download(entry));
    return item;
  }));
}
