/** Library: what there is to look at (samples, uploads, runs), ways to bring more, and training runs to start. */

/** @import { Checkpoint, RunRow, TraceRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number, plural } from "../lib/format.js";
import { jobs } from "../lib/jobs.js";
import { stream } from "../lib/stream.js";
import { fail } from "../lib/toast.js";
import { checkpointCard, deleteButton, traceLine } from "../parts/checkpoint-card.js";
import { MoePresets } from "../parts/presets.js";
import { MoeUpload } from "../parts/upload.js";

const RELOAD_ON = new Set(["run_started", "run_finished", "run_stopped", "run_failed", "run_resumed"]);

export class MoeLibrary extends HTMLElement {
  checkpoints = h("div", { class: "library-groups" });
  upload = new MoeUpload();
  /** @type {(() => void) | null} */
  deaf = null;
  finished = 0;
  counted = () => {
    const finished = [...jobs.all.values()].filter((job) => job.status === "done").length;
    if (finished > this.finished) this.refresh().catch(fail);
    this.finished = finished;
  };

  connectedCallback() {
    this.classList.add("view-library");
    document.title = "Library · moescope";
    fill(this,
      h("h1", null, "Library"),
      h("p", { class: "lead" }, "Checkpoints of Mixture-of-Experts models. Inspect one to see which expert takes which token; trace a new text to ask a question of your own."),
      this.checkpoints,
      h("section", { class: "library-add" }, h("h2", null, "Bring your own"), this.upload),
      h("section", null, h("h2", null, "Train one and watch"), new MoePresets()));
    this.upload.addEventListener("added", () => this.refresh().catch(fail));
    this.deaf = stream.listen((event) => { if (RELOAD_ON.has(event.kind)) this.refresh().catch(fail); });
    jobs.addEventListener("change", this.counted);
  }

  disconnectedCallback() {
    this.deaf?.();
    jobs.removeEventListener("change", this.counted);
  }

  update() { this.refresh().catch(fail); }

  async refresh() {
    const [checkpoints, traces, runs] = await Promise.all([api.checkpoints(), api.traces(), api.runs()]);
    const changed = () => { this.refresh().catch(fail); };
    const of = (/** @type {Checkpoint} */ checkpoint) => traces.filter((trace) => trace.checkpoint === checkpoint.id).sort(newest);
    const group = (/** @type {string} */ words, /** @type {HTMLElement[]} */ cards) => cards.length > 0 && h("section", null, h("h2", null, words), h("div", { class: "cards" }, cards));
    const card = (/** @type {Checkpoint} */ checkpoint) => checkpointCard(checkpoint, of(checkpoint), changed);
    const known = new Set(checkpoints.map((checkpoint) => checkpoint.id));
    const loose = traces.filter((trace) => trace.run === null && (trace.checkpoint === null || !known.has(trace.checkpoint))).sort(newest);
    fill(this.checkpoints,
      group("Bundled samples", checkpoints.filter((item) => item.origin === "sample").sort((a, b) => a.id.localeCompare(b.id)).map(card)),
      group("Your checkpoints", checkpoints.filter((item) => item.origin === "upload" || item.origin === "path").map(card)),
      group("Runs", runs.map((run) => runCard(run, changed))),
      loose.length > 0 && h("section", null, h("h2", null, "Other traces"), h("ul", { class: "loose card" }, loose.map((trace) => traceLine(trace, changed)))),
      checkpoints.length + runs.length + loose.length === 0 && h("p", { class: "muted" }, "Nothing here yet: bring a checkpoint below, or train one."));
  }
}

/** @param {TraceRow} a @param {TraceRow} b */
function newest(a, b) { return b.created.localeCompare(a.created); }

/** @param {RunRow} run @param {() => void} changed */
function runCard(run, changed) {
  const snapshot = run.snapshots[run.snapshots.length - 1];
  const active = run.status === "running" || run.status === "queued";
  return h("article", { class: "card run", "data-id": run.id },
    h("h3", null, run.name, h("span", { class: `chip ${run.status}` }, run.status)),
    h("p", { class: "muted num" }, `step ${number(run.step)} of ${number(run.steps)} · ${plural(run.snapshots.length, "snapshot")} · ${plural(run.checkpoints.length, "checkpoint")}`),
    active && h("progress", { max: Math.max(1, run.steps), value: run.step, "aria-label": "Steps done" }),
    run.error && h("p", { class: "problems" }, run.error),
    h("div", { class: "card-foot" }, h("a", { class: "button primary", href: `#/run/${encodeURIComponent(run.id)}` }, active ? "Watch" : "Open"),
      snapshot && h("a", { class: "button", title: "Inspect the newest snapshot of the probe text", href: `#/inspect/${encodeURIComponent(snapshot)}` }, "Inspect"),
      !active && deleteButton(`Delete the run ${run.name} with its snapshots and checkpoints?`, () => api.deleteRun(run.id), changed)));
}
