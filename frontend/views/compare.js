/** Compare: sweeps, that is variants of one model with several seeds each; those there are, and those that can be started. */

/** @import { SweepRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { coded, fill, h } from "../lib/dom.js";
import { plural, when } from "../lib/format.js";
import { stream } from "../lib/stream.js";
import { VERDICTS, counts, isLive, progressWords } from "../lib/sweeps.js";
import { fail } from "../lib/toast.js";
import { deleteButton } from "../parts/checkpoint-card.js";
import { MoeSweepPresets } from "../parts/sweep-presets.js";

const PACE = 1500;

export class MoeCompare extends HTMLElement {
  list = h("div", { class: "library-groups" });
  presets = new MoeSweepPresets();
  /** @type {(() => void) | null} */
  deaf = null;
  timer = 0;

  connectedCallback() {
    this.classList.add("view-library", "view-compare");
    document.title = "Compare · moescope";
    fill(this,
      h("h1", null, "Compare"),
      h("p", { class: "lead" }, "A sweep trains variants of one model, such as different routers, on the same data with several seeds each. Two single runs differ by their seeds alone; a sweep says how much of a difference is more than that, with an interval."),
      this.list,
      h("section", null, h("h2", null, "Ready to start"), this.presets));
    this.deaf = stream.listen((event) => { if (event.kind === "job" && event.payload.kind === "sweep") this.soon(PACE); });
  }

  disconnectedCallback() {
    this.deaf?.();
    clearTimeout(this.timer);
    this.timer = 0;
  }

  update() { this.refresh().catch(fail); }

  /** Look again, once, before long. @param {number} wait ms */
  soon(wait) {
    if (!this.timer) this.timer = window.setTimeout(() => { this.timer = 0; this.refresh().catch(fail); }, wait);
  }

  async refresh() {
    const { sweeps, presets } = await api.sweeps();
    if (!this.isConnected) return;
    const changed = () => { this.refresh().catch(fail); };
    const focused = document.activeElement instanceof HTMLElement && this.list.contains(document.activeElement) ? document.activeElement : null;
    const again = focused && [focused.closest("article")?.dataset.id, focused.textContent];
    fill(this.list, sweeps.length > 0
      ? h("section", null, h("h2", null, "Your sweeps"), h("div", { class: "cards" }, sweeps.map((sweep) => card(sweep, changed))))
      : h("p", { class: "muted" }, "None yet. Start one of these: it shows its race while it runs, and can be stopped and gone on with."));
    if (again) [...this.list.querySelectorAll("a, button")].filter((one) => one instanceof HTMLElement && one.closest("article")?.dataset.id === again[0] && one.textContent === again[1]).forEach((one) => { if (one instanceof HTMLElement) one.focus(); });
    this.presets.put(presets, sweeps);
    if (sweeps.some((sweep) => sweep.status === "running" && sweep.job === null)) this.soon(4000); // a command line's: no job tells of it
  }
}

/** @param {SweepRow} sweep @param {() => void} changed */
function card(sweep, changed) {
  const { done, steps } = counts(sweep);
  const live = isLive(sweep);
  return h("article", { class: `card sweep${sweep.status === "damaged" ? " broken" : ""}`, "data-id": sweep.id },
    h("h3", null, sweep.title || sweep.name, h("span", { class: `chip ${sweep.status}` }, sweep.status)),
    sweep.description && h("p", { class: "sweep-words" }, coded(sweep.description)),
    sweep.cells.length > 0 && h("p", { class: "muted num" }, `${progressWords(sweep)} · ${plural(sweep.variants.length, "variant")} × ${plural(sweep.seeds.length, "seed")} · ${when(sweep.created)}`),
    live && h("progress", { max: Math.max(1, steps), value: done, "aria-label": "Steps done, of all runs" }),
    verdicts(sweep),
    sweep.error && h("p", { class: "problems" }, sweep.error),
    h("div", { class: "card-foot" },
      sweep.status !== "damaged" && h("a", { class: "button primary", href: `#/sweep/${encodeURIComponent(sweep.id)}` }, live ? "Watch" : "Open"),
      !live && deleteButton(`Delete the sweep ${sweep.title || sweep.name} with its ${plural(sweep.cells.length, "run")}?`, () => api.deleteSweep(sweep.id), changed)));
}

/** @param {SweepRow} sweep */
function verdicts(sweep) {
  const found = Object.entries(VERDICTS).filter(([name]) => sweep.verdicts[name]);
  if (!found.length || !counts(sweep).finished) return null;
  return h("p", { class: "verdict-counts" }, `${isLive(sweep) ? "So far, claims" : "Claims"}: `,
    found.map(([name, { sign, kind }]) => h("span", { class: `verdict ${kind}` }, h("span", { "aria-hidden": "true" }, sign), ` ${told(name, sweep.verdicts[name] ?? 0)}`)));
}

/** "2 hold", "1 does not hold". @param {string} verdict @param {number} count */
function told(verdict, count) {
  return `${count} ${count > 1 ? verdict.replace("holds", "hold").replace("does not", "do not") : verdict}`;
}
