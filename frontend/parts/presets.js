/** `<moe-presets>`: the ready training runs, each with what it shows, how long it takes, and a start button. */

/** @import { Preset } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { duration } from "../lib/format.js";
import { state } from "../lib/state.js";
import { fail } from "../lib/toast.js";

export class MoePresets extends HTMLElement {
  connectedCallback() { if (!this.firstChild) this.open().catch(fail); }

  async open() {
    const presets = await api.presets();
    fill(this, presets.map(card));
    if (!presets.length) fill(this, h("p", { class: "muted" }, "No presets are installed."));
  }
}

/** @param {Preset} preset */
function card(preset) {
  const changes = h("textarea", { rows: 3, spellcheck: false, placeholder: "optim.steps=200\nmodel.num_experts=16", "aria-label": `Settings of ${preset.title} to change, one key=value a line` });
  const start = h("button", { type: "button", class: "primary", onclick: async () => {
    start.disabled = true;
    try {
      const { run } = await api.startRun({ preset: preset.name, set: parse(changes.value) });
      state.go("run", run);
    } catch (error) {
      fail(error);
    } finally {
      start.disabled = false;
    }
  } }, "Start");
  return h("article", { class: "card preset", "data-preset": preset.name },
    h("h3", null, preset.title), h("p", null, preset.description),
    h("details", null, h("summary", null, "Change settings"),
      h("p", { class: "muted small-text" }, "One key=value a line; dots go into a section. The settings of this preset:", tip("The names are those of the configuration below. What is wrong is refused with a sentence before anything starts.")),
      changes, h("pre", { class: "config", tabIndex: 0 }, lines(preset.config).join("\n"))),
    h("div", { class: "card-foot" }, h("span", { class: "muted" }, preset.seconds ? `about ${duration(preset.seconds)} on two cores` : ""), start));
}

/** @param {Record<string, unknown>} config @param {string} [above] @returns {string[]} */
export function lines(config, above = "") {
  return Object.entries(config).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? lines(/** @type {Record<string, unknown>} */ (value), `${above}${key}.`)
      : [`${above}${key}=${typeof value === "string" ? value : JSON.stringify(value)}`]);
}

/** @param {string} text @returns {Record<string, string>} */
function parse(text) {
  return Object.fromEntries(text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
    const at = line.indexOf("=");
    return at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
  }));
}

customElements.define("moe-presets", MoePresets);
