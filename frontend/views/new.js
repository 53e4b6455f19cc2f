/** New: a training run from a preset, or from a checkpoint of another run, with any setting changed before it starts. */

/** @import { Preset } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { coded, debounce, fill, h } from "../lib/dom.js";
import { duration, number, plural } from "../lib/format.js";
import { state } from "../lib/state.js";
import { fail } from "../lib/toast.js";
import { MoeRunForm } from "../parts/run-form.js";
import { shown } from "../parts/setting-field.js";

/** What a new run starts from: a preset, or a checkpoint. @typedef {{ title: string, wanted: { preset: string } | { fork: string }, config: Record<string, unknown>, set?: Record<string, unknown> }} From */

/** There is nothing to start from, and the server has said why. */
class Refused extends Error {
  name = "Refused";
}

export class MoeNew extends HTMLElement {
  form = new MoeRunForm();
  cards = h("div", { class: "preset-cards", role: "radiogroup", "aria-label": "Presets" });
  lead = h("p", { class: "lead" });
  bar = h("div", { class: "start-bar" });
  verdict = h("p", { class: "verdict-line", role: "status" });
  differ = h("div", { class: "differ" });
  named = h("input", { type: "text", maxLength: 200, "aria-label": "Name of the run" });
  start = h("button", { type: "submit", class: "primary" }, "Start the run");
  opened = "";
  /** @type {From | null} */
  from = null;
  turn = 0;
  check = debounce(250, () => { this.ask().catch(fail); });

  connectedCallback() {
    this.classList.add("view-new");
    document.title = "New run · moescope";
    fill(this.bar, h("div", { class: "start-words" }, this.verdict, this.differ), h("label", { class: "field" }, h("span", { class: "field-name" }, "Name"), this.named), this.start);
    const form = h("form", { class: "new-form", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); this.go().catch(fail); } }, this.cards, this.form, this.bar);
    fill(this, h("h1", null, "New run"), this.lead, form);
    this.form.addEventListener("change", () => {
      const set = this.form.differences();
      state.set({ set: Object.keys(set).length ? JSON.stringify(set) : null }, { push: false });
      this.write();
      this.check();
    });
  }

  update() {
    const [preset, fork] = [state.get("preset"), state.get("fork")];
    const key = JSON.stringify([preset, fork]);
    if (key === this.opened) return;
    this.opened = key;
    this.open(preset, fork).catch((error) => { this.lead.textContent = error instanceof Error ? error.message : String(error); if (error?.name !== "ApiError" && error?.name !== "Refused") throw error; });
  }

  /** @param {string | null} wanted @param {string | null} fork */
  async open(wanted, fork) {
    const turn = ++this.turn;
    this.bar.hidden = this.from === null;
    this.lead.textContent = "Reading what can be set…";
    const [presets, schema] = await Promise.all([api.presets(), api.runSchema()]);
    if (turn !== this.turn) return;
    const preset = presets.find((one) => one.name === wanted) ?? presets.find((one) => "expansion" in one.config) ?? presets[0];
    const from = fork ? await this.forked(fork) : await this.fresh(preset);
    if (turn !== this.turn) return;
    this.from = from;
    this.bar.hidden = false;
    this.choose(presets, fork ? null : preset);
    this.lead.textContent = fork ? `${from.title}: weights, moments and step count go on from there. The model's shape stays; everything else may change.${from.set ? " It had taken all its steps: as many are added." : ""}` : "Start a preset as it is, or change what you like: only what differs from it is sent.";
    this.named.placeholder = from.title;
    this.form.open(schema, from.config, kept() ?? from.set ?? {});
    this.write();
    await this.ask();
  }

  /** @param {Preset} preset @returns {Promise<From>} */
  async fresh(preset) {
    const { config, error } = await api.checkRun({ preset: preset.name });
    if (!config) throw new Refused(error ?? `The preset ${preset.name} cannot be read.`);
    return { title: preset.title, wanted: { preset: preset.name }, config };
  }

  /** @param {string} fork @returns {Promise<From>} */
  async forked(fork) {
    const { config: fits, error } = await api.checkRun({ fork });
    const row = (await api.checkpoints()).find((one) => one.id === fork);
    const run = row?.run ? await api.run(row.run) : null;
    // A run that took all its steps cannot go on as it is: it gets as many again.
    const steps = Number(/** @type {any} */ (run?.config)?.optim?.steps);
    const ended = !fits && run && row?.step && row.step >= steps ? { "optim.steps": row.step + steps } : null;
    const config = fits ?? (ended && run?.config);
    if (!config) throw new Refused(error ?? `The checkpoint ${fork} cannot be gone on from.`);
    return { ...(ended ? { set: ended } : {}), title: `${run?.name ?? row?.name ?? fork}${row?.step ? `, from step ${number(row.step)}` : ""}`, wanted: { fork }, config };
  }

  /** @param {Preset[]} presets @param {Preset | null} chosen null: it starts from a checkpoint */
  choose(presets, chosen) {
    const focused = this.cards.contains(document.activeElement);
    fill(this.cards, presets.map((preset) => {
      const radio = h("input", { type: "radio", name: "preset", value: preset.name, checked: preset.name === chosen?.name, onchange: () => state.go("new", null, { preset: preset.name }) });
      return h("label", { class: `preset-card${preset.name === chosen?.name ? " chosen" : ""}`, "data-preset": preset.name },
        radio, h("span", { class: "preset-title" }, preset.title), h("span", { class: "preset-about" }, coded(preset.description)),
        h("span", { class: "preset-facts muted" }, preset.seconds ? `about ${duration(preset.seconds)} on two cores` : "", "expansion" in preset.config && h("span", { class: "chip grows" }, "experts grow")));
    }));
    const at = /** @type {HTMLInputElement | null} */ (this.cards.querySelector("input:checked"));
    if (focused) at?.focus();
    at?.closest("label")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  write() {
    const set = Object.entries(this.form.differences());
    fill(this.differ, set.length ? [h("span", { class: "muted" }, `${plural(set.length, "setting")} differ${set.length === 1 ? "s" : ""}:`), ...set.map(([key, value]) => h("code", null, `${key} = ${shown(value)}`))] : h("span", { class: "muted" }, this.from && "fork" in this.from.wanted ? "As the run it comes from." : "As the preset is."));
  }

  /** Ask the server whether this would start, and put its sentence where it belongs. */
  async ask() {
    const { from } = this;
    if (!from) return;
    const turn = ++this.turn;
    const { ok, error } = await api.checkRun({ ...from.wanted, set: this.form.differences() });
    if (turn !== this.turn || !this.isConnected) return;
    const placed = this.form.object(ok ? null : error);
    this.start.disabled = !ok;
    this.verdict.className = `verdict-line${ok ? " good" : " bad"}`;
    this.verdict.textContent = ok ? "Ready to start." : `${placed ? "One setting does not fit: " : ""}${placed ?? error ?? "This cannot be started."}`;
  }

  async go() {
    const { from } = this;
    if (!from || this.start.disabled) return;
    this.start.disabled = true;
    try {
      const name = this.named.value.trim();
      const { run } = await api.startRun({ ...from.wanted, set: this.form.differences(), ...(name ? { name } : {}) });
      state.go("run", run);
    } finally { this.start.disabled = false; }
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.key !== "/") return false;
    this.form.search.focus();
    this.form.search.select();
    return true;
  }
}

/** The changes that the address holds. @returns {Record<string, unknown> | null} */
function kept() {
  try {
    const set = JSON.parse(state.get("set") ?? "null");
    return set !== null && typeof set === "object" && !Array.isArray(set) ? set : null;
  } catch { return null; }
}
