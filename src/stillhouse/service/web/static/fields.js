// Form fields made from the API's own schema: what is added there appears here by itself.
// A field has a name, a node, read() (undefined: leave it to the server) and fill(value).
import { element, LIMITS } from "./common.js";

const SUFFIXES = { _s: "seconds", _ms: "ms", _bytes: "bytes" };
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// "64" is a number; what is none is sent as it stands, for the server says what must hold.
function number(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

const list = (text) => text.split(",").map((part) => part.trim()).filter((part) => part !== "");

function label(name) {
  const suffix = Object.keys(SUFFIXES).find((end) => name.endsWith(end));
  const plain = (suffix ? name.slice(0, -suffix.length) : name).replaceAll("_", " ");
  return plain[0].toUpperCase() + plain.slice(1) + (suffix ? `, ${SUFFIXES[suffix]}` : "");
}

// A labelled control with its hint, which names it as the API does: the server's messages use that name.
function labelled(name, text, control, hint) {
  const box = element("div", "", { class: "field" });
  control.id = `field-${name}`;
  control.name = name;
  control.setAttribute("aria-describedby", `hint-${name}`);
  const small = element("small", hint ? `${hint} ` : "", { id: `hint-${name}` });
  small.append(element("code", name));
  box.append(element("label", text, { for: control.id }), control, small);
  return box;
}

function input(decimal) {
  return element("input", "", { type: "text", autocomplete: "off", spellcheck: "false", ...(decimal ? { inputmode: "decimal" } : {}) });
}

function textField(name, schema, hint, { parse, show = String, decimal = false, suggestions = [] }) {
  const control = input(decimal);
  const node = labelled(name, label(name), control, hint);
  if (suggestions.length > 0) {
    const options = element("datalist", "", { id: `options-${name}` });
    for (const value of suggestions) options.append(element("option", "", { value }));
    control.setAttribute("list", options.id);
    node.append(options);
  }
  const fill = (value) => { control.value = value === null || value === undefined ? "" : show(value); };
  fill(schema.default);
  const read = () => {
    const value = parse(control.value);
    return value === undefined || same(value, schema.default) ? undefined : value;
  };
  return { name, node, read, fill };
}

function choiceField(name, schema, hint, choices) {
  const control = document.createElement("select");
  for (const value of choices) control.append(element("option", value, { value }));
  const fill = (value) => {
    const text = String(value);
    if (![...control.options].some((option) => option.value === text)) control.append(element("option", text, { value: text }));
    control.value = text;
  };
  fill(schema.default);
  return { name, node: labelled(name, label(name), control, hint), fill,
    read: () => (control.value === String(schema.default) ? undefined : control.value) };
}

function checkField(name, schema, hint) {
  const control = element("input", "", { type: "checkbox" });
  const node = labelled(name, label(name), control, hint);
  node.classList.add("check");
  const fill = (value) => { control.checked = Boolean(value); };
  fill(schema.default);
  return { name, node, fill, read: () => (control.checked === Boolean(schema.default) ? undefined : control.checked) };
}

function group(name, hint) {
  const node = element("fieldset", "", { class: "group", id: `field-${name}`, tabindex: "-1" });
  const small = element("small", hint ? `${hint} ` : "");
  small.append(element("code", name));
  node.append(element("legend", label(name)), small);
  return node;
}

function severalField(name, schema, hint, choices) {
  const node = group(name, hint);
  const boxes = choices.map((value) => {
    const box = element("input", "", { type: "checkbox", value, name });
    const outer = element("label", "", { class: "tick" });
    const text = (LIMITS[`max_${value}`]?.[2] ?? value).replace(", at most", "");  // an objective, in a limit's words
    outer.append(box, ` ${text}`);
    node.append(outer);
    return box;
  });
  const fill = (values) => { for (const box of boxes) box.checked = values.includes(box.value); };
  fill(schema.default ?? []);
  const read = () => {
    const values = boxes.filter((box) => box.checked).map((box) => box.value);
    return same(values, schema.default) ? undefined : values;
  };
  return { name, node, read, fill };
}

function partsField(name, schema, hint, known) {
  const node = group(name, hint);
  const parts = Object.entries(schema.properties).map(([part, inner]) => [part, field(`${name}.${part}`, inner, known)]);
  for (const [part, made] of parts) {
    made.node.querySelector("label").textContent = label(part);
    node.append(made.node);
  }
  const read = () => {
    const values = parts.map(([part, made]) => [part, made.read()]).filter(([, value]) => value !== undefined);
    return values.length === 0 ? undefined : Object.fromEntries(values);
  };
  return { name, node, read, fill: (values) => parts.forEach(([part, made]) => made.fill(values[part])) };
}

// "alpha=0.9, beta=2": values by name, where nothing says which names there are.
function mapField(name, schema, hint) {
  const parse = (text) => (text.trim() === "" ? undefined : Object.fromEntries(list(text).map((part) => {
    const [key, ...rest] = part.split("=");
    return [key.trim(), number(rest.join("=")) ?? ""];
  })));
  const show = (values) => Object.entries(values).map(([key, value]) => `${key}=${value}`).join(", ");
  return textField(name, schema, `${hint ?? ""} Written name=value, with commas between.`.trim(), { parse, show });
}

// The schema that counts: behind a reference, and beside "or null". Its own default stays.
function resolved(schema, schemas) {
  const inner = schema.anyOf?.filter((one) => one.type !== "null");
  const found = schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : inner?.length === 1 ? resolved(inner[0], schemas) : schema;
  return found === schema ? schema : { ...found, ...schema, type: found.type };
}

/** One field. ``known``: schemas by name, choices and suggestions by field. */
export function field(name, given, known) {
  const schema = resolved(given, known.schemas);
  const hint = given.description ?? "";
  const choices = schema.enum ?? schema.items?.enum ?? known.choices[name];
  const suggestions = known.suggestions[name] ?? [];
  if (schema.properties) return partsField(name, schema, hint, known);
  if (schema.type === "array" && choices) return severalField(name, schema, hint, choices);
  if (choices) return choiceField(name, schema, hint, choices);
  if (schema.type === "boolean") return checkField(name, schema, hint);
  if (schema.type === "object") return mapField(name, schema, hint);
  if (schema.type === "array") {
    const numbers = ["integer", "number"].includes(schema.items?.type);
    const parse = numbers ? (text) => list(text).map(number) : list;
    return textField(name, schema, `${hint} Commas between.`.trim(), { parse, show: (values) => values.join(", "), suggestions });
  }
  if (["integer", "number"].includes(schema.type)) return textField(name, schema, hint, { parse: number, decimal: true });
  return textField(name, schema, hint, { parse: (text) => text.trim() || undefined, suggestions });
}

/** A limit of the budget, written in the unit that stands beside it. */
export function limitField(name, hint) {
  const [unit, , text, unitText] = LIMITS[name] ?? [1, "", label(name), ""];
  const control = input(name !== "max_image_size");
  control.placeholder = "no limit";
  const node = labelled(name, text, control, unitText || hint);
  const read = () => {
    if (name === "max_image_size") return control.value.trim() || undefined;
    const value = number(control.value);
    return typeof value === "number" ? Number((value * unit).toPrecision(12)) : value;
  };
  const fill = (value) => {
    const scaled = typeof value === "number" && unit !== 1 ? Number((value / unit).toPrecision(12)) : value;
    const [height, width] = String(scaled ?? "").split("x");
    control.value = height === width ? height : String(scaled ?? "");
  };
  return { name, node, read, fill };
}

/** The method's knobs, one field each, at the defaults of that method. */
export function knobsField(name, methods, method) {
  const node = group(name, "Of the method that is chosen.");
  let fields = [];
  const show = () => {
    for (const made of fields) made.node.remove();
    fields = (methods[method()]?.knobs ?? []).map((knob) => {
      const range = knob.low === null || knob.low === undefined ? "" : ` (${knob.low} to ${knob.high})`;
      const made = textField(`${name}.${knob.name}`, knob, `${knob.help ?? ""}${range}`, { parse: number, decimal: true });
      made.node.querySelector("label").textContent = label(knob.name);
      return { ...made, knob: knob.name };
    });
    node.append(...fields.map((made) => made.node));
    node.hidden = fields.length === 0;
  };
  show();
  const read = () => {
    const values = fields.map((made) => [made.knob, made.read()]).filter(([, value]) => value !== undefined);
    return values.length === 0 ? undefined : Object.fromEntries(values);
  };
  const fill = (values) => {
    show();
    for (const made of fields) if (made.knob in values) made.fill(values[made.knob]);
  };
  return { name, node, read, fill, show };
}

/** What the fields hold, by name; what the server decides is left out. */
export function readAll(fields) {
  return Object.fromEntries(fields.map((made) => [made.name, made.read()]).filter(([, value]) => value !== undefined));
}
