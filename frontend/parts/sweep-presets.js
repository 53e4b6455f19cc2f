/** `<moe-sweep-presets>`: the ready sweeps, each with its question, its variants, how long it takes, its seeds, and a start button. */

/** @import { SweepPreset, SweepRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { coded, fill, h, tip } from "../lib/dom.js";
import { duration, plural } from "../lib/format.js";
import { state } from "../lib/state.js";
import { fail, toast } from "../lib/toast.js";

export class MoeSweepPresets extends HTMLElement {
  shown = "";

  /** @param {SweepPreset[]} presets @param {SweepRow[]} sweeps those that there are */
  put(presets, sweeps) {
    const there = new Map(sweeps.map((sweep) => [sweep.id, sweep]));
    const key = JSON.stringify([presets, presets.map(({ id }) => there.get(id)?.status)]);
    if (key === this.shown) return; // what is being typed stays
    this.shown = key;
    fill(this, presets.map((preset) => card(preset, there.get(preset.id))),
      !presets.length && h("p", { class: "muted" }, "No sweeps are bundled here. ", h("code", null, "moescope sweep FILE.toml"), " runs one of your own, and it shows on this page."));
  }
}

/** @param {SweepPreset} preset @param {SweepRow | undefined} there the one that was started as it is */
function card(preset, there) {
  const seeds = h("input", { type: "text", value: preset.seeds.join(", "), inputMode: "numeric", "aria-label": `Seeds of ${preset.title}`, class: "seeds" });
  const cost = h("p", { class: "muted small-text num" });
  const changes = h("textarea", { rows: 2, spellcheck: false, placeholder: "optim.steps=100\ndata.tokens=50000", "aria-label": `Settings of every run of ${preset.title} to change, one key=value a line` });
  const told = () => {
    const count = read(seeds.value)?.length ?? 0;
    const seconds = (preset.seconds * count) / preset.seeds.length;
    const runs = `${plural(preset.variants.length * count, "run")}: ${plural(preset.variants.length, "variant")} × ${plural(count, "seed")}`;
    cost.textContent = count ? `${runs}${seconds ? `, about ${duration(seconds)} on two cores` : ""}` : "Seeds are whole numbers, separated by commas.";
  };
  seeds.addEventListener("input", told);
  told();
  const start = h("button", { type: "button", class: there ? "" : "primary", onclick: async () => {
    const chosen = read(seeds.value);
    if (!chosen) { seeds.focus(); toast("Seeds are whole numbers, separated by commas, like 0, 1, 2.", { kind: "error" }); return; }
    start.disabled = true;
    start.textContent = "Starting…";
    try {
      const { sweep, job } = await api.startSweep({ preset: preset.name, seeds: chosen, set: parse(changes.value) });
      if (job === null) toast("This sweep is there already: the same seeds and settings give the same runs.");
      state.go("sweep", sweep);
    } catch (error) {
      fail(error);
    } finally {
      start.disabled = false;
      start.textContent = "Start";
    }
  } }, "Start");
  return h("article", { class: "card sweep-preset", "data-preset": preset.name },
    h("h3", null, preset.title), h("p", null, coded(preset.description)),
    h("details", null, h("summary", null, `${plural(preset.variants.length, "variant")}, ${plural(preset.claims, "claim")} put to the test`),
      h("dl", { class: "variant-list" }, preset.variants.map((variant) => h("div", null, h("dt", null, variant.label), h("dd", { class: "muted" }, coded(variant.description)))))),
    h("details", null, h("summary", null, "Change settings"),
      h("p", { class: "muted small-text" }, "One key=value a line, for every run of the sweep.", tip("The names are those of a run's configuration, such as optim.steps or data.tokens. What is wrong is refused with a sentence before anything starts.")), changes),
    h("div", { class: "sweep-start" }, h("label", { class: "field grow" }, h("span", { class: "field-name" }, "Seeds"), seeds), cost),
    h("div", { class: "card-foot" }, there && h("a", { class: "button primary", href: `#/sweep/${encodeURIComponent(there.id)}` }, `Open (${there.status})`), start));
}

/** Seeds as typed, null where they are none. @param {string} text @returns {number[] | null} */
function read(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean);
  const whole = parts.every((part) => /^\d+$/.test(part)) && new Set(parts.map(Number)).size === parts.length;
  return parts.length && whole ? parts.map(Number) : null;
}

/** @param {string} text @returns {Record<string, string>} */
function parse(text) {
  return Object.fromEntries(text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
    const at = line.indexOf("=");
    return at < 0 ? [line, ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()];
  }));
}

customElements.define("moe-sweep-presets", MoeSweepPresets);
