/** `<moe-jobs>`: what the server is working on, in the header: stage, progress, time left, cancel. */

/** @import { Job, RunRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { duration, percent, title } from "../lib/format.js";
import { isActive, jobs } from "../lib/jobs.js";
import { state } from "../lib/state.js";
import { fail, toast } from "../lib/toast.js";

/** @type {Record<string, string>} */
const NAMES = { trace: "Trace", train: "Training run", project: "Projection of the map", sweep: "Sweep" };

export class MoeJobs extends HTMLElement {
  button = h("button", { type: "button", class: "quiet jobs-button", "aria-expanded": "false", "aria-controls": "jobs-panel", onclick: () => this.toggle() });
  panel = h("div", { class: "jobs-panel", id: "jobs-panel", hidden: true, role: "region", "aria-label": "Jobs" });
  /** Jobs that were seen running here, so that their end is news. @type {Set<string>} */
  running = new Set();
  /** Whose job it is, by job: a job knows its run only when it has ended. @type {Map<string, RunRow>} */
  runs = new Map();
  /** Jobs that were asked about. */
  asked = "";

  connectedCallback() {
    fill(this, this.button, this.panel);
    jobs.addEventListener("change", () => this.refresh());
    document.addEventListener("pointerdown", (event) => { if (event.target instanceof Node && !this.contains(event.target)) this.toggle(false); });
    this.addEventListener("keydown", (event) => { if (event.key === "Escape" && !this.panel.hidden) { event.stopPropagation(); this.toggle(false); this.button.focus(); } });
    this.refresh();
  }

  /** @param {boolean} [open] */
  toggle(open = this.panel.hidden === true) {
    this.panel.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    if (open) this.refresh();
  }

  /** Which run is whose, where the list is looked at and a training job is new. @param {Job[]} all */
  async name(all) {
    const training = all.filter((job) => job.kind === "train").map((job) => job.id).join();
    if (this.panel.hidden || training === this.asked) return;
    this.asked = training;
    try {
      for (const run of await api.runs()) if (run.job) this.runs.set(run.job, run);
      this.refresh();
    } catch { this.asked = ""; }
  }

  refresh() {
    const all = [...jobs.all.values()].sort((a, b) => b.created.localeCompare(a.created));
    const active = all.filter(isActive);
    for (const job of all) {
      if (isActive(job)) this.running.add(job.id);
      else if (this.running.delete(job.id)) announce(job);
    }
    const share = active.length === 1 && active[0].progress !== null ? ` · ${percent(active[0].progress)}` : "";
    fill(this.button, active.length > 0 && h("span", { class: "spinner", "aria-hidden": "true" }), active.length ? `Jobs: ${active.length}${share}` : "Jobs");
    this.classList.toggle("active", active.length > 0);
    fill(this.panel, all.length ? all.map((job) => row(job, this.runs.get(job.id))) : h("p", { class: "muted" }, "Nothing is running. Traces, training runs, sweeps and projections show here while they work."));
    void this.name(all);
  }
}

/** @param {Job} job @param {RunRow} [run] whose job it is */
function row(job, run) {
  const left = duration(job.seconds_left);
  const words = job.status === "queued" ? "waiting for its turn" : job.status === "running" ? `${job.stage || "working"}${left ? `, ${left} left` : ""}` : job.status === "failed" ? job.error ?? "failed" : job.status;
  const where = place(job) ?? (run ? `#/run/${encodeURIComponent(run.id)}` : null);
  return h("div", { class: `job ${job.status}` },
    h("div", { class: "job-head" }, h("strong", null, run ? `Run: ${run.name}` : NAMES[job.kind] ?? title(job.kind)), where && job.kind !== "project" && h("a", { href: where }, "Open"),
      isActive(job)
        ? h("button", { type: "button", class: "small", onclick: () => api.cancelJob(job.id).catch(fail) }, "Cancel")
        : h("button", { type: "button", class: "icon", "aria-label": "Take off the list", onclick: () => jobs.forget(job.id) }, "×")),
    isActive(job) && h("progress", job.progress === null ? { max: 1 } : { max: 1, value: job.progress }),
    h("p", { class: "muted small-text" }, words));
}

/** Where a job's result is shown. @param {Job} job */
function place(job) {
  const { trace, run, sweep } = job.result ?? {};
  if (typeof trace === "string") return `#/inspect/${encodeURIComponent(trace)}`;
  if (typeof run === "string") return `#/run/${encodeURIComponent(run)}`;
  if (typeof sweep === "string") return `#/sweep/${encodeURIComponent(sweep)}`;
  return null;
}

/** @param {Job} job */
function announce(job) {
  if (job.status === "failed") toast(job.error ?? `The ${job.kind} job failed without a reason.`, { kind: "error" });
  const where = place(job);
  if (job.status === "done" && job.kind === "trace" && where && location.hash.split("?")[0] !== where) {
    toast("The trace is ready.", { action: { label: "Open it", run: () => { state.go("inspect", String(job.result?.trace)); } } });
  }
}

customElements.define("moe-jobs", MoeJobs);
