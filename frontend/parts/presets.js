/** `<moe-presets>`: the ready training runs, each with what it shows, how long it takes, and a start button. */

/** @import { Preset } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { coded, fill, h } from "../lib/dom.js";
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
  const start = h("button", { type: "button", class: "primary", onclick: async () => {
    start.disabled = true;
    try {
      const { run } = await api.startRun({ preset: preset.name });
      state.go("run", run);
    } catch (error) {
      fail(error);
    } finally {
      start.disabled = false;
    }
  } }, "Start");
  return h("article", { class: "card preset", "data-preset": preset.name },
    h("h3", null, preset.title), h("p", null, coded(preset.description)),
    h("div", { class: "card-foot" }, h("span", { class: "muted" }, preset.seconds ? `about ${duration(preset.seconds)} on two cores` : ""),
      h("span", { class: "button-row" }, h("a", { class: "button", href: `#/new?preset=${encodeURIComponent(preset.name)}` }, "Change settings"), start)));
}

/** @param {Record<string, unknown>} config @param {string} [above] @returns {string[]} */
export function lines(config, above = "") {
  return Object.entries(config).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? lines(/** @type {Record<string, unknown>} */ (value), `${above}${key}.`)
      : [`${above}${key}=${typeof value === "string" ? value : JSON.stringify(value)}`]);
}

customElements.define("moe-presets", MoePresets);
