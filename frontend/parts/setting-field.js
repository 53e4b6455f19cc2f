/** One setting of a form: its name, the control that its kind asks for, its help, what it was, and the server's objection. */

/** @import { RegistryEntry, RunSchema, Setting } from "../lib/types.d.ts" */

import { fill, h } from "../lib/dom.js";
import { title } from "../lib/format.js";
import { corpusOf, FROM_DATA, same, settingsOf } from "../lib/schema.js";

/** @typedef {{ element: HTMLElement, put: (value: any) => void }} Control */
/** @typedef {(value: any) => void} Changed */

let ids = 0;

/** @param {unknown} value */
export function shown(value) {
  if (value === null || value === undefined) return "none";
  return typeof value === "string" ? value || "(empty)" : JSON.stringify(value);
}

/** A value that may be text, a number, a list or a table, read as a person writes it. @param {string} text @param {boolean} none */
function loose(text, none) {
  const trimmed = text.trim();
  if (trimmed === "" && none) return null;
  try { return JSON.parse(trimmed); } catch { /* no JSON: a list, or text */ }
  return /^\d+(\s*,\s*\d+)+$/.test(trimmed) ? trimmed.split(",").map(Number) : trimmed;
}

/** @param {Setting} setting @param {string} id @param {Changed} changed @returns {Control} */
function simple(setting, id, changed) {
  const { kind, none } = setting;
  if (FROM_DATA.has(setting.key)) return { element: h("input", { type: "text", id, disabled: true, value: "from the data" }), put: () => undefined };
  if (kind === "boolean") {
    const box = h("input", { type: "checkbox", id, onchange: () => changed(box.checked) });
    return { element: box, put: (value) => { box.checked = value === true; } };
  }
  if (kind === "choice") {
    const select = h("select", { id, onchange: () => changed(select.value === "" && none ? null : select.value) }, none && h("option", { value: "" }, "none"), (setting.choices ?? []).map((name) => h("option", { value: name }, name)));
    return { element: select, put: (value) => { select.value = value ?? ""; } };
  }
  if (kind === "choices") {
    const boxes = (setting.choices ?? []).map((name) => h("input", { type: "checkbox", value: name, onchange: () => changed(boxes.filter((box) => box.checked).map((box) => box.value)) }));
    return {
      element: h("span", { class: "choices", role: "group", id, tabIndex: -1 }, boxes.map((box) => h("label", null, box, box.value))),
      put: (value) => boxes.forEach((box) => { box.checked = Array.isArray(value) && value.includes(box.value); }),
    };
  }
  const numeric = kind === "integer" || kind === "number";
  const read = () => {
    const text = input.value.trim();
    if (!numeric) return kind === "string" ? (text === "" && none ? null : text) : loose(text, none);
    if (text === "" && none) return null;
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const input = h("input", { type: "text", id, inputMode: numeric ? "decimal" : "text", spellcheck: false, autocomplete: "off", placeholder: none ? "none" : "", oninput: () => changed(read()) });
  return { element: input, put: (value) => { if (!same(read(), value)) input.value = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value); } };
}

/**
 * The options of one registry entry, each with its help; what is at its default is not in the value.
 * @param {RegistryEntry} entry @param {Record<string, any>} value @param {string} id @param {(value: Record<string, any>) => void} changed
 */
export function optionFields(entry, value, id, changed) {
  let now = value;
  return h("div", { class: "options" }, settingsOf(entry.schema, entry.schema.$defs ?? {}).map((option) => {
    const control = simple(option, `${id}-${option.key}`, (given) => {
      const { [option.key]: _, ...rest } = now;
      now = same(given, option.default) ? rest : { ...rest, [option.key]: given };
      changed(now);
    });
    control.put(option.key in now ? now[option.key] : option.default);
    return h("div", { class: "option" }, h("label", { for: `${id}-${option.key}` }, title(option.name)), control.element, h("span", { class: "setting-help" }, option.help, !FROM_DATA.has(option.key) && h("span", { class: "was" }, ` (${shown(option.default)})`)));
  }));
}

/** What an entry is, in a line. @param {RegistryEntry | undefined} entry */
function about(entry) {
  if (!entry) return "";
  const facts = [entry.causal === false && "sees later tokens", entry.learns === false && "its router does not learn", entry.grows === false && "cannot grow"].filter(Boolean);
  return `${entry.description ?? ""}${facts.length ? ` (${facts.join(", ")})` : ""}`;
}

/** A name of a registry with the options that it has. @param {Setting} setting @param {RunSchema} schema @param {string} id @param {Changed} changed @returns {Control} */
function registry(setting, schema, id, changed) {
  const entries = schema.options[setting.registry ?? ""] ?? {};
  const select = h("select", { id, onchange: () => { now = { name: select.value, options: {} }; write(); changed(now); } }, Object.keys(entries).map((name) => h("option", { value: name }, name)));
  const words = h("p", { class: "setting-help" });
  const more = h("div");
  let now = { name: "", options: /** @type {Record<string, any>} */ ({}) };
  const write = () => {
    select.value = now.name;
    words.textContent = about(entries[now.name]);
    fill(more, entries[now.name] && optionFields(entries[now.name], now.options, id, (options) => { now = { ...now, options }; changed(now); }));
  };
  return { element: h("div", { class: "registry" }, select, words, more), put: (value) => { if (!same(value, now)) { now = { name: value.name, options: value.options ?? {} }; write(); } } };
}

/** A corpus with its options, or anything else that data may come from, as text. @param {Setting} setting @param {RunSchema} schema @param {string} id @param {Changed} changed @returns {Control} */
function corpus(setting, schema, id, changed) {
  const entries = schema.options.corpora ?? {};
  const select = h("select", { id, onchange: () => { now = select.value === "" ? null : select.value === " " ? "" : select.value; write(); changed(now); } },
    setting.none && h("option", { value: "" }, "none"), Object.keys(entries).map((name) => h("option", { value: name }, name)), h("option", { value: " " }, "a path, hub:NAME or a table"));
  const words = h("p", { class: "setting-help" });
  const text = h("input", { type: "text", spellcheck: false, "aria-label": `${setting.key}, as text`, oninput: () => { now = loose(text.value, false); changed(now); } });
  const more = h("div");
  /** @type {any} */
  let now = null;
  const write = () => {
    const found = corpusOf(now, entries);
    const free = now !== null && !found;
    select.value = now === null ? "" : found ? found.corpus : " ";
    words.textContent = found ? about(entries[found.corpus]) : "";
    text.hidden = !free;
    if (free) text.value = typeof now === "string" ? now : JSON.stringify(now);
    fill(more, found && optionFields(entries[found.corpus], found.options, id, (options) => {
      now = Object.keys(options).length ? { corpus: found.corpus, ...options } : found.corpus;
      changed(now);
    }));
  };
  return { element: h("div", { class: "registry" }, select, text, words, more), put: (value) => { if (!same(value, now)) { now = value; write(); } } };
}

/** The auxiliary losses: a row each, with coefficient and options. @param {RunSchema} schema @param {string} id @param {Changed} changed @returns {Control} */
function objectives(schema, id, changed) {
  const entries = schema.options.objectives ?? {};
  const rows = h("div", { class: "objective-rows" });
  const add = h("select", { id, "aria-label": "Add an objective", onchange: () => {
    const name = add.value;
    if (!name) return;
    now = { ...now, [name]: 0.01 };
    write();
    changed(now);
    /** @type {HTMLInputElement | null} */ (rows.querySelector(`[data-objective="${name}"] input`))?.focus();
  } });
  /** @type {Record<string, any>} */
  let now = {};
  const set = (/** @type {string} */ name, /** @type {any} */ table) => {
    const { coefficient, calibrate, ...options } = table;
    now = { ...now, [name]: calibrate || Object.keys(options).length ? { coefficient, ...(calibrate ? { calibrate } : {}), ...options } : coefficient };
    changed(now);
  };
  const row = (/** @type {string} */ name) => {
    const table = () => (typeof now[name] === "object" ? now[name] : { coefficient: now[name] });
    const { coefficient, calibrate, ...options } = table();
    const number = h("input", { type: "text", inputMode: "decimal", value: String(coefficient), id: `${id}-${name}`, oninput: () => set(name, { ...table(), coefficient: Number.isFinite(Number(number.value)) && number.value.trim() ? Number(number.value) : number.value }) });
    const box = h("input", { type: "checkbox", checked: calibrate === true, onchange: () => set(name, { ...table(), calibrate: box.checked }) });
    const away = h("button", { type: "button", class: "icon", "aria-label": `Take ${name} away`, onclick: () => { const { [name]: _, ...rest } = now; now = rest; write(); changed(now); add.focus(); } }, "×");
    return h("div", { class: "objective", "data-objective": name },
      h("div", { class: "objective-head" }, h("label", { for: `${id}-${name}` }, name), number, h("label", { class: "calibrate" }, box, "calibrate"), away),
      h("p", { class: "setting-help" }, about(entries[name])),
      entries[name] && optionFields(entries[name], options, `${id}-${name}`, (given) => set(name, { coefficient: table().coefficient, calibrate: table().calibrate, ...given })));
  };
  const write = () => {
    fill(rows, Object.keys(now).map(row));
    fill(add, h("option", { value: "" }, "Add an objective…"), Object.keys(entries).filter((name) => !(name in now)).map((name) => h("option", { value: name }, name)));
  };
  return { element: h("div", { class: "registry" }, rows, add), put: (value) => { if (!same(value ?? {}, now) || !add.options.length) { now = value ?? {}; write(); } } };
}

/** One row of the form. */
export class SettingRow {
  /** @param {Setting} setting @param {RunSchema} schema @param {Changed} changed of a registry: {name, options} */
  constructor(setting, schema, changed) {
    this.setting = setting;
    const id = `setting-${++ids}`;
    const { kind } = setting;
    this.control = kind === "registry" ? registry(setting, schema, id, changed) : kind === "corpus" ? corpus(setting, schema, id, changed) : kind === "objectives" ? objectives(schema, id, changed) : simple(setting, id, changed);
    this.was = h("span", { class: "was" });
    this.undo = h("button", { type: "button", class: "link", hidden: true, onclick: () => changed(undefined) }, "undo");
    this.objection = h("p", { class: "objection", role: "alert", id: `${id}-error` });
    const field = this.control.element.id === id ? this.control.element : this.control.element.querySelector(`#${id}`);
    field?.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    this.element = h("div", { class: `setting ${kind}`, "data-key": setting.key },
      h("label", { for: id, title: setting.key }, kind === "objectives" ? "Objectives" : title(setting.name)),
      h("div", { class: "setting-control" }, this.control.element, this.objection),
      h("div", { class: "setting-help", id: `${id}-help` }, setting.help, " ", this.was, this.undo));
  }

  /** @param {any} value @param {any} base */
  put(value, base) {
    this.control.put(value);
    if (FROM_DATA.has(this.setting.key)) return;
    const changed = !same(value ?? null, base ?? null);
    this.element.classList.toggle("changed", changed);
    const { kind } = this.setting;
    const words = kind === "registry" ? base?.name : kind === "objectives" ? null : shown(base);
    this.was.textContent = kind === "objectives" || base === undefined ? "" : `(${changed ? "was " : ""}${words})`;
    this.undo.hidden = !changed;
  }

  /** @param {string} sentence */
  object(sentence) {
    this.objection.textContent = sentence;
    this.element.classList.toggle("wrong", sentence !== "");
  }

  /** Of a registry, its entries and the options of the chosen one count too. @param {string} words lower case */
  matches(words) {
    const plain = (/** @type {string} */ text) => text.toLowerCase().replaceAll("_", " ");
    const inside = this.control.element.classList.contains("registry") ? this.control.element.textContent ?? "" : "";
    return [this.setting.key, this.setting.help, title(this.setting.name), inside].some((text) => plain(text).includes(plain(words)));
  }
}
