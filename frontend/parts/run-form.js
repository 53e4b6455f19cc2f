/** `<moe-run-form>`: every setting of a run, made from the configuration's schema; says what differs from where it began. */

/** @import { RunSchema, Setting } from "../lib/types.d.ts" */

import { debounce, fill, h } from "../lib/dom.js";
import { title } from "../lib/format.js";
import { differences, GROUPS, named, settings, valueAt, withValue } from "../lib/schema.js";
import { SettingRow } from "./setting-field.js";

/** Fires `change` when a value was changed by hand. */
export class MoeRunForm extends HTMLElement {
  /** @type {Map<string, SettingRow>} */
  rows = new Map();
  /** @type {Setting[]} */
  all = [];
  /** @type {RunSchema | null} */
  schema = null;
  /** The setting that the server objects to. @type {string | null} */
  wrong = null;
  /** What it began with, and what is wanted. @type {any} */
  base = {};
  /** @type {any} */
  wanted = {};
  search = h("input", { type: "search", placeholder: "Search a setting ( / )", "aria-label": "Search a setting", oninput: debounce(80, () => this.filter()) });
  nav = h("nav", { class: "form-nav", "aria-label": "Groups of settings" });
  groups = h("div", { class: "form-groups" });
  none = h("p", { class: "muted empty-line", hidden: true }, "No setting has such a name or help.");

  /** @param {RunSchema} schema @param {any} base @param {Record<string, unknown>} set changes on top of it, by key */
  open(schema, base, set) {
    this.schema = schema;
    this.base = base;
    this.wanted = Object.entries(set).reduce((config, [key, value]) => withValue(config, key, value), base);
    if (!this.all.length) this.build(schema);
    this.put();
  }

  /** @param {RunSchema} schema */
  build(schema) {
    this.all = settings(schema);
    fill(this.nav, this.search);
    for (const [group, words, about] of GROUPS) {
      const rows = this.all.filter((one) => one.group === group).map((one) => {
        const row = new SettingRow(one, schema, (value) => this.changed(one, value));
        this.rows.set(one.key, row);
        return row;
      });
      if (!rows.length) continue;
      const id = `group-${group}`;
      const plain = rows.filter((row) => !row.setting.within);
      const tables = [...new Set(rows.flatMap((row) => row.setting.within ?? []))];
      this.groups.append(h("section", { class: "panel form-group", id, "data-group": group }, h("header", null, h("h2", { tabIndex: -1 }, words), h("span", { class: "muted" }, about)),
        plain.map((row) => row.element), tables.map((table) => this.table(table, rows.filter((row) => row.setting.within === table)))));
      this.nav.append(h("button", { type: "button", "data-group": group, onclick: () => {
        const section = this.groups.querySelector(`#${id}`);
        section?.scrollIntoView({ block: "start" });
        /** @type {HTMLElement | null | undefined} */ (section?.querySelector("h2"))?.focus({ preventScroll: true });
      } }, h("span", null, words), h("span", { class: "count" })));
    }
    this.groups.append(this.none);
    fill(this, this.nav, this.groups);
  }

  /** The settings of a table that need not be there, below a switch. @param {string} table @param {SettingRow[]} rows */
  table(table, rows) {
    const box = h("input", { type: "checkbox", onchange: () => this.toggle(table, box.checked) });
    const words = table === "expansion" ? "Let experts grow" : title(table.split(".").pop() ?? table);
    return h("div", { class: "setting-table", "data-table": table }, h("label", { class: "table-switch" }, box, words, h("span", { class: "setting-help" }, rows[0].setting.about ?? "")), h("div", { class: "setting-rows" }, rows.map((row) => row.element)));
  }

  /** A table that need not be there comes with its defaults, or goes. @param {string} table @param {boolean} there */
  toggle(table, there) {
    const begun = valueAt(this.base, table);
    const defaults = Object.fromEntries(this.all.filter((one) => one.within === table).flatMap((one) => {
      const name = one.key.slice(table.length + 1);
      return [...(one.default === undefined ? [] : [[name, one.default]]), ...(one.options ? [[one.options.slice(table.length + 1), {}]] : [])];
    }));
    this.wanted = withValue(this.wanted, table, there ? begun ?? defaults : null);
    this.put();
    this.dispatchEvent(new Event("change"));
  }

  /** @param {Setting} setting @param {any} value undefined: as it was */
  changed(setting, value) {
    const undone = value === undefined;
    if (setting.options) {
      const begun = !setting.within || valueAt(this.base, setting.within);
      const given = undone ? (begun ? this.value(setting, this.base) : { name: setting.default, options: {} }) : value;
      this.wanted = withValue(withValue(this.wanted, setting.key, given.name), setting.options, given.options);
    } else this.wanted = withValue(this.wanted, setting.key, undone ? valueAt(this.base, setting.key) ?? setting.default ?? null : value);
    this.put();
    this.dispatchEvent(new Event("change"));
  }

  /** @param {Setting} setting @param {any} config */
  value(setting, config) {
    return setting.options ? { name: valueAt(config, setting.key), options: valueAt(config, setting.options) ?? {} } : valueAt(config, setting.key);
  }

  put() {
    for (const { element, setting } of this.rows.values()) {
      const row = /** @type {SettingRow} */ (this.rows.get(setting.key));
      const begun = !setting.within || valueAt(this.base, setting.within);
      row.put(this.value(setting, this.wanted), begun ? this.value(setting, this.base) : setting.options ? { name: setting.default, options: {} } : setting.default);
      element.hidden = false;
    }
    for (const part of /** @type {NodeListOf<HTMLElement>} */ (this.groups.querySelectorAll("[data-table]"))) {
      const there = Boolean(valueAt(this.wanted, part.dataset.table ?? ""));
      const [box, rows] = [part.querySelector("input"), part.querySelector(".setting-rows")];
      if (box) box.checked = there;
      if (rows instanceof HTMLElement) rows.hidden = !there;
    }
    const differ = Object.keys(this.differences());
    for (const button of this.nav.querySelectorAll("button")) {
      const count = differ.filter((key) => this.groupOf(key) === button.dataset.group).length;
      const place = button.querySelector(".count");
      if (place) place.textContent = count ? String(count) : "";
    }
    this.filter();
  }

  /** @param {string} key */
  groupOf(key) { return this.all.find((one) => one.key === key || one.options === key || one.within === key)?.group ?? "run"; }

  differences() { return differences(this.all, this.base, this.wanted); }

  /** Put the server's sentence beside the setting it names and go there; the sentence as shown, null where it names none. @param {string | null} sentence */
  object(sentence) {
    const found = sentence && this.schema ? named(sentence, this.schema, this.all) : null;
    const at = found && (this.all.find((one) => one.key === found.key || one.options === found.key)?.key ?? null);
    for (const [name, row] of this.rows) row.object(found && name === at ? found.sentence : "");
    for (const button of this.nav.querySelectorAll("button")) button.classList.toggle("wrong", at !== null && at !== "" && this.groupOf(at) === button.dataset.group);
    if (at && at !== this.wrong) this.reveal(at);
    this.wrong = at;
    return at && found ? found.sentence : null;
  }

  /** @param {string} key */
  reveal(key) {
    const element = this.rows.get(key)?.element;
    if (element?.hidden && document.activeElement !== this.search) { this.search.value = ""; this.filter(); }
    element?.scrollIntoView({ block: "nearest" });
  }

  /** Show only the settings that the search is about. */
  filter() {
    const words = this.search.value.trim().toLowerCase();
    let found = 0;
    for (const section of /** @type {NodeListOf<HTMLElement>} */ (this.groups.querySelectorAll(".form-group"))) {
      let here = 0;
      for (const element of /** @type {NodeListOf<HTMLElement>} */ (section.querySelectorAll(".setting"))) {
        const match = !words || this.rows.get(element.dataset.key ?? "")?.matches(words) === true;
        element.hidden = !match;
        here += match ? 1 : 0;
      }
      section.hidden = words !== "" && here === 0;
      found += here;
    }
    this.none.hidden = found > 0;
  }
}

customElements.define("moe-run-form", MoeRunForm);
