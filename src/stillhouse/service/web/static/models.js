// What is said of a model, wherever it is shown.
import { element, fixed, percent, side, words } from "./common.js";

const there = (x) => x !== null && x !== undefined;
const LEAST = { macs: "fewest MACs", params: "fewest parameters", model_bytes: "smallest file",
  image_bytes: "fewest bytes per picture", latency_ms: "fastest", memory_bytes: "least memory" };

/** The answer of /jobs/{id}/pareto as the page needs it: what may be absent is there, and each model is in its place.
 * Jobs of earlier versions have no accuracy as sent: they are shown by the plain one. */
export function arranged(answer) {
  const { front, others, compared, family = [] } = answer;
  const sent = [...front, ...others, ...compared, ...family].some((entry) => there(entry.accuracy_coded));
  const kin = [...compared, ...family];
  const ofFront = (entry) => (there(entry.trial)
    ? front.some((member) => member.trial === entry.trial && member.variant === entry.variant) : family.includes(entry));
  return { tied: {}, picks: {}, in_doubt: [], ...answer, judged: answer.judged === "coded" && sent ? "coded" : "plain",
    family: kin.filter(ofFront), compared: kin.filter((entry) => !ofFront(entry)) };
}

/** {value, low, high} of the accuracy that the front is chosen by; null where it is not known. */
export function judged(entry, by) {
  if (by !== "coded") return { value: entry.accuracy, low: entry.accuracy_low, high: entry.accuracy_high };
  return coded(entry);
}

/** The same of pictures that went through the codec. */
export function coded(entry) {
  const value = entry.accuracy_coded;
  if (!there(value)) return null;
  return { value, low: entry.accuracy_coded_low ?? value, high: entry.accuracy_coded_high ?? value };
}

/** Most accurate first; those without a figure last. */
export function ranked(entries, by) {
  const value = (entry) => judged(entry, by)?.value ?? -1;
  return [...entries].sort((a, b) => value(b) - value(a));
}

export const pixels = (entry) => `${side(entry.image_size)} → ${side(entry.network_size)}`;

export function trained(entry) {
  return words(entry.variant) + (entry.variant === "distilled" && entry.method ? ` (${entry.method})` : "");
}

export function codec(entry) {
  if (!there(entry.quality)) return "–";
  return `${(entry.codec ?? "").toUpperCase()} ${entry.quality}`.trim();
}

/** Network, sizes and stem, and the precision where it is not the usual one. */
export function name(entry) {
  const precision = entry.precision && entry.precision !== "fp32" ? `, ${entry.precision}` : "";
  return `${entry.arch} ${pixels(entry)} ${entry.stem}${precision}`;
}

export function download(entry) {
  return element("a", "ONNX", { href: entry.links.onnx, download: entry.file, "aria-label": `Download ${entry.file}` });
}

/** "71.7 %" and below it the interval. */
export function share(figure) {
  const box = element("span", percent(figure?.value));
  if (figure && figure.low < figure.high) {
    box.append(" ", element("small", `(${fixed(100 * figure.low, 1)}–${fixed(100 * figure.high, 1)})`, { class: "interval" }));
  }
  return box;
}

/** Why a model is picked out: ``picks`` is {reason: id}. */
export function badges(entry, picks) {
  return Object.entries(picks).filter(([, id]) => id === entry.model).map(([reason]) => (reason === "knee"
    ? element("span", "best trade-off", { class: "badge knee", title: "The knee of the front" })
    : element("span", `${LEAST[reason] ?? `least ${words(reason)}`} within 1 point`,
      { class: "badge", title: "The cheapest of those within one point of the most accurate" })));
}

/** The same network's other deployments. */
export function familyOf(entry, family) {
  return family.filter((one) => there(one.trial) && one.trial === entry.trial && one.variant === entry.variant);
}
