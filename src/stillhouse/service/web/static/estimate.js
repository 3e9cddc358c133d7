// How many candidates fit a budget, what binds, and what a wider limit would open.
import { cell, element, fixed, limit, LIMITS, tableOf } from "./common.js";

const HEADINGS = ["Limit", "#rules out", "#alone"];

function described({ candidate, cost }) {
  const bytes = cost.image_bytes === undefined ? "" : `, ${fixed(cost.image_bytes, 0)} bytes per picture`;
  const { arch, image_size, network_size, stem } = candidate;
  return `${arch} ${image_size} → ${network_size} ${stem}: ${fixed(cost.macs / 1e6, 1)} M MACs${bytes}`;
}

function headline(found) {
  const most = found.is_upper_bound ? "At most " : "";
  return `${most}${found.fits} of ${found.candidates} candidates fit.`;
}

function relaxed(found) {
  const shares = [...new Set(found.relax.map((each) => each.by))];
  const table = tableOf("What each limit rules out, and how many more fit when it is relaxed",
    [...HEADINGS, ...shares.map((share) => `#+${Math.round(100 * share)} %`)]);
  for (const name of Object.keys(found.ruled_out)) {
    const row = table.tBodies[0].insertRow();
    cell(row, (LIMITS[name]?.[2] ?? name).replace(", at most", ""), { wrap: true });
    cell(row, String(found.ruled_out[name]), { number: true });
    cell(row, String(found.ruled_out_alone[name]), { number: true });
    for (const share of shares) {
      const each = found.relax.find((one) => one.limit === name && one.by === share);
      const td = cell(row, each ? `+${each.opens}` : "–", { number: true });
      if (each) td.title = `${limit(name, each.value)}${each.likely_best ? `; likely best of these: ${described(each.likely_best)}` : ""}`;
    }
  }
  return table;
}

/** Shows the answer of POST /estimates: the headline in a live region, the rest below it. */
export function showEstimate(headlineBox, box, found) {
  headlineBox.className = found.fits === 0 ? "count none" : "count";
  headlineBox.textContent = headline(found);
  box.replaceChildren();
  if (found.reason) box.append(element("p", found.reason, { class: "upset" }));
  if (found.binds) {
    box.append(element("p", `${found.binds} binds: it alone rules out ${found.ruled_out_alone[found.binds]}.`, { id: "binds" }));
  }
  for (const note of found.notes ?? []) {
    box.append(element("p", `${note[0].toUpperCase()}${note.slice(1)}.`, { class: "soft" }));
  }
  if (found.likely_best) {
    const best = element("p", "", { id: "likely-best" });
    best.append(element("strong", "Likely best: "), described(found.likely_best));
    box.append(best, element("p", `Not a promise; ${found.why}.`, { class: "soft" }));
  }
  if (Object.keys(found.ruled_out).length > 0) {
    const scroll = element("div", "", { class: "scroll", role: "region", "aria-label": "Limits, relaxed", tabindex: "0" });
    scroll.append(relaxed(found));
    box.append(element("h3", "When a limit is relaxed, so many more fit"), scroll);
  }
}
