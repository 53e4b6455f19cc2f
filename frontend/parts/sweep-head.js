/** The head of a sweep: its question, how far it is, what a reader must know; stop, go on, download, delete; and its runs. */

/** @import { SweepCell, SweepDetail } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { coded, fill, h, tip } from "../lib/dom.js";
import { duration, number, percent, plural } from "../lib/format.js";
import { jobs } from "../lib/jobs.js";
import { state } from "../lib/state.js";
import { CELL_SIGNS, counts, isLive, labelOf, progressWords } from "../lib/sweeps.js";
import { fail } from "../lib/toast.js";
import { deleteButton } from "./checkpoint-card.js";

export class SweepHead extends HTMLElement {
  chip = h("span", { class: "chip" });
  bar = h("progress", { max: 1, value: 0, "aria-label": "Steps done, of all runs" });
  words = h("span", { class: "num" });
  actions = h("div", { class: "button-row" });
  trouble = h("div");
  notes = h("div");
  acted = "";
  /** @type {SweepDetail | null} */
  sweep = null;
  watched = () => { if (this.sweep) this.progress(this.sweep); };

  connectedCallback() { jobs.addEventListener("change", this.watched); }

  disconnectedCallback() { jobs.removeEventListener("change", this.watched); }

  /** @param {SweepDetail} sweep @param {() => void} changed */
  open(sweep, changed) {
    this.classList.add("sweep-head");
    this.changed = changed;
    const reference = sweep.variants.find((variant) => variant.name === sweep.reference);
    fill(this,
      h("p", { class: "small-text" }, h("a", { href: "#/compare" }, "All sweeps")),
      h("div", { class: "sweep-title" }, h("h1", null, sweep.title || sweep.name), this.chip, this.actions),
      sweep.description && h("p", { class: "sweep-question" }, coded(sweep.description)),
      h("div", { class: "toolbar" }, this.words, this.bar,
        h("span", { class: "muted num" }, `${plural(sweep.variants.length, "variant")} × ${plural(sweep.seeds.length, "seed")} (${sweep.seeds.join(", ")}), ${number(sweep.cells[0]?.steps ?? 0)} steps each`,
          reference ? ` · differences are taken against ${labelOf(reference)}` : null)),
      this.trouble, this.notes);
    this.put(sweep);
  }

  changed = () => {};

  /** @param {SweepDetail} sweep */
  put(sweep) {
    this.sweep = sweep;
    this.chip.textContent = sweep.status;
    this.chip.className = `chip ${sweep.status}`;
    fill(this.trouble, sweep.error && h("p", { class: "banner bad", role: "alert" }, sweep.error));
    const { notes } = sweep.summary;
    fill(this.notes, notes.length > 0 && h("div", { class: "banner sweep-notes" }, h("strong", null, "Keep in mind"), h("ul", null, notes.map((note) => h("li", null, note)))));
    this.progress(sweep);
    this.act(sweep);
  }

  /** @param {SweepDetail} sweep */
  progress(sweep) {
    const { done, steps } = counts(sweep);
    this.bar.hidden = sweep.status === "finished";
    this.bar.max = Math.max(1, steps);
    this.bar.value = done;
    const job = sweep.job === null ? null : jobs.all.get(sweep.job);
    const left = isLive(sweep) && job ? duration(job.seconds_left) : "";
    const stage = sweep.status === "queued" ? " · waiting for its turn" : sweep.status === "running" && sweep.job === null ? " · run by a command line" : job?.stage && isLive(sweep) ? ` · ${job.stage}` : "";
    this.words.textContent = `${progressWords(sweep)}${left ? ` · ${left} left` : ""}${stage}`;
  }

  /** The buttons, made anew only when others are wanted: one that has the focus keeps it. @param {SweepDetail} sweep */
  act(sweep) {
    const { failed, finished, cells } = counts(sweep);
    const live = isLive(sweep);
    const key = [live, sweep.job !== null, finished === cells, failed > 0, finished > 0].join();
    if (key === this.acted) return;
    this.acted = key;
    const button = (/** @type {string} */ words, /** @type {() => Promise<unknown>} */ run, kind = "", title = "") => h("button", { type: "button", class: kind, title, onclick: async (/** @type {Event} */ event) => {
      const pressed = /** @type {HTMLButtonElement} */ (event.currentTarget);
      pressed.disabled = true;
      try { await run(); this.changed(); } catch (error) { pressed.disabled = false; fail(error); }
    } }, words);
    fill(this.actions,
      live && sweep.job !== null && button("Stop", () => api.stopSweep(sweep.id), "", "The run under way writes a checkpoint; the sweep can be gone on with."),
      !live && finished < cells && button(failed && failed + finished === cells ? "Try the failed runs again" : "Go on", () => api.resumeSweep(sweep.id), "primary"),
      finished > 0 && h("a", { class: "button", href: api.tableUrl(sweep.id), download: `${sweep.id}.csv`, title: "One row per run, measure and layer" }, "Download table.csv"),
      !live && deleteButton(`Delete the sweep ${sweep.title || sweep.name} with its ${plural(cells, "run")}?`, () => api.deleteSweep(sweep.id), () => state.go("compare")));
  }
}

/** `<moe-sweep-cells>`: one row per variant, one column per seed, and how each run is. */
export class MoeSweepCells extends HTMLElement {
  shown = "";

  /** @param {SweepDetail} sweep */
  put(sweep) {
    const key = JSON.stringify(sweep.cells);
    if (key === this.shown) return;
    this.shown = key;
    const at = new Map(sweep.cells.map((cell) => [`${cell.variant} ${cell.seed}`, cell]));
    fill(this, h("div", { class: "table-scroll", tabIndex: 0, role: "group", "aria-label": "Runs" }, h("table", { class: "dense sweep-cells" },
      h("caption", { class: "visually-hidden" }, "Every run of the sweep: variants down, seeds across"),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Variant"), sweep.seeds.map((seed) => h("th", { scope: "col" }, `seed ${seed}`)))),
      h("tbody", null, sweep.variants.map((variant) => h("tr", null,
        h("th", { scope: "row" }, h("span", { class: "swatch", style: { "--c": sweep.palette[variant.name] } }), ` ${labelOf(variant)} `, variant.description ? tip(variant.description) : null),
        sweep.seeds.map((seed) => { const cell = at.get(`${variant.name} ${seed}`); return cell ? run(cell) : h("td", null, "–"); })))))));
  }
}

/** @param {SweepCell} cell */
function run(cell) {
  const words = cell.status === "running" || cell.status === "stopped" ? `${cell.status}, ${percent(cell.step / Math.max(1, cell.steps))}` : cell.status;
  return h("td", { class: `run-cell ${cell.status}`, title: `${cell.name}: step ${number(cell.step)} of ${number(cell.steps)}`, "data-cell": cell.name },
    h("span", { class: "cell-sign", "aria-hidden": "true" }, CELL_SIGNS[cell.status] ?? "?"), ` ${words}`,
    cell.error ? tip(cell.error) : null,
    cell.status === "running" && h("progress", { max: Math.max(1, cell.steps), value: cell.step, "aria-label": `Steps of ${cell.name}` }));
}

customElements.define("moe-sweep-head", SweepHead);
customElements.define("moe-sweep-cells", MoeSweepCells);
