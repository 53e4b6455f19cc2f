/** Sweep: one comparison, live or finished: its runs, its race, its claims, its table. */

/** @import { MetricInfo, MoeEvent, SweepDetail } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { state } from "../lib/state.js";
import { stream } from "../lib/stream.js";
import { counts, curveWords, isLive } from "../lib/sweeps.js";
import { fail } from "../lib/toast.js";
import { MoeFigure } from "../parts/figure.js";
import { MoeSweepClaims } from "../parts/sweep-claims.js";
import { MoeSweepCells, SweepHead } from "../parts/sweep-head.js";
import { MoeSweepTable } from "../parts/sweep-table.js";

/** Least time between two looks at a sweep that runs, between two races, and between looks where no job tells of it; ms. */
const PACE = 1200;
const RACE_PACE = 4000;
const POLL = 4000;

export class MoeSweep extends HTMLElement {
  /** @type {SweepDetail | null} */
  sweep = null;
  opened = "";
  head = new SweepHead();
  race = new MoeFigure();
  frontier = new MoeFigure();
  cells = new MoeSweepCells();
  claims = new MoeSweepClaims();
  table = new MoeSweepTable();
  curve = h("select", { "aria-label": "Curve of the race" });
  across = h("span", { class: "segmented", role: "group", "aria-label": "What the race runs over" });
  /** @type {Map<string, MetricInfo>} */
  infos = new Map();
  /** @type {(() => void) | null} */
  deaf = null;
  timer = 0;
  raced = { done: -1, at: 0 };
  back = () => { if (stream.status === "live") this.soon(0); };

  connectedCallback() {
    this.classList.add("view-sweep");
    this.deaf = stream.listen((event) => this.hear(event));
    stream.addEventListener("status", this.back);
    this.curve.addEventListener("change", () => state.set({ curve: this.curve.value === "loss" ? null : this.curve.value }));
  }

  disconnectedCallback() {
    this.deaf?.();
    stream.removeEventListener("status", this.back);
    clearTimeout(this.timer);
    this.opened = "";
  }

  update() {
    const { id } = state.route;
    if (id === null) state.go("compare", null, {}, { push: false });
    else if (id !== this.opened) this.open(id).catch((error) => this.refuse(id, error));
    else this.moved();
  }

  /** @param {string} id @param {unknown} error */
  refuse(id, error) {
    this.opened = "";
    this.sweep = null;
    fill(this, h("div", { class: "empty" }, h("h1", null, `Sweep ${id} cannot be shown`), h("p", { role: "alert" }, error instanceof Error ? error.message : String(error)), h("a", { class: "button primary", href: "#/compare" }, "All sweeps")));
    if (error instanceof Error && error.name !== "ApiError") throw error;
  }

  /** @param {string} id */
  async open(id) {
    this.opened = id;
    this.sweep = null;
    await stream.whenLive(3000);
    const [sweep, infos] = await Promise.all([api.sweep(id), api.metricInfo()]);
    if (this.opened !== id) return;
    this.infos = new Map(infos.map((info) => [info.name, info]));
    document.title = `${sweep.title || sweep.name} · moescope`;
    this.lay(sweep);
    this.put(sweep);
  }

  /** @param {SweepDetail} sweep */
  lay(sweep) {
    this.head = new SweepHead();
    this.race = new MoeFigure();
    this.frontier = new MoeFigure();
    this.cells = new MoeSweepCells();
    this.claims = new MoeSweepClaims();
    this.table = new MoeSweepTable();
    this.raced = { done: -1, at: 0 };
    this.race.explain = "One line per variant: the mean over its seeds. The band (or the bar at the end, with many variants) is the 95 % interval of that mean: where bands overlap widely, seeds alone may explain the order. Click a name to hide a line; drag to zoom, double-click to see all.";
    this.frontier.explain = "Does growth find the number of experts that a search over fixed numbers finds? Lines: fixed sets. Stars: grown ones, each run a dot. A star on or below the lines, near their elbow, found it. Bars are 95 % intervals over seeds.";
    const named = (/** @type {string} */ words, /** @type {Node} */ body, kind = "") => h("section", { class: `panel ${kind}` }, h("header", null, h("h2", null, words)), body);
    const claims = sweep.summary.claims.length > 0;
    fill(this, this.head, h("div", { class: "sweep-body" },
      named("Runs", this.cells, "area-cells"),
      h("div", { class: `sweep-grid${claims ? "" : " alone"}` },
        h("section", { class: "panel area-race" }, h("div", { class: "toolbar race-tools" }, h("label", { class: "field" }, h("span", { class: "field-name" }, "Curve"), this.curve), h("span", { class: "field" }, h("span", { class: "field-name" }, "over"), this.across)), this.race),
        sweep.frontier && h("section", { class: "panel area-frontier" }, this.frontier),
        claims && named("What was claimed, and what came out", this.claims, "area-claims")),
      named("Results: means over seeds, with intervals", this.table, "area-table")));
    this.head.open(sweep, () => this.soon(0));
  }

  /** @param {SweepDetail} sweep */
  put(sweep) {
    this.sweep = sweep;
    this.classList.toggle("live", sweep.status !== "finished");
    this.head.put(sweep);
    this.cells.put(sweep);
    this.claims.put(sweep, this.infos);
    this.moved();
    const { done } = counts(sweep);
    if (done !== this.raced.done && (performance.now() - this.raced.at > RACE_PACE || !isLive(sweep))) {
      if (this.raced.done >= 0) for (const figure of [this.race, ...(sweep.frontier ? [this.frontier] : [])]) figure.refetch();
      this.raced = { done, at: performance.now() };
    }
    if (sweep.status !== "finished" && sweep.job === null) this.soon(POLL); // a command line may be at work: no job tells of it
  }

  /** What the address asks for: the curve, what it runs over, the measure. */
  moved() {
    const { sweep } = this;
    if (!sweep) return;
    const wanted = state.get("curve") ?? "loss";
    const curve = sweep.curves.includes(wanted) ? wanted : "loss";
    const x = state.get("x") === "tokens" ? "tokens" : "step";
    if (this.curve.options.length !== sweep.curves.length) fill(this.curve, sweep.curves.map((name) => h("option", { value: name }, curveWords(name))));
    this.curve.value = curve;
    if (this.across.dataset.x !== x) {
      const held = this.across.contains(document.activeElement);
      this.across.dataset.x = x;
      fill(this.across, [["step", "steps"], ["tokens", "tokens trained on"]].map(([value, words]) => h("button", { type: "button", "aria-pressed": String(value === x), "data-x": value, onclick: () => state.set({ x: value === "step" ? null : value }) }, words)));
      if (held) /** @type {HTMLElement | null} */ (this.across.querySelector("[aria-pressed=true]"))?.focus();
    }
    this.race.show({ owner: "sweeps", of: sweep.id, name: "race", options: { curve, x } });
    if (sweep.frontier) this.frontier.show({ owner: "sweeps", of: sweep.id, name: "frontier", options: {} });
    this.table.put(sweep, this.infos);
  }

  /** @param {MoeEvent} event */
  hear(event) {
    if (event.kind !== "job" || event.payload.kind !== "sweep" || !this.sweep) return;
    const result = /** @type {Record<string, unknown> | null} */ (event.payload.result);
    if (event.payload.id !== this.sweep.job && result?.sweep !== this.sweep.id) return;
    this.soon(event.payload.status === "running" ? PACE : 0);
  }

  due = 0;

  /** Look again before long; a sooner wish wins. @param {number} wait ms */
  soon(wait) {
    const due = performance.now() + wait;
    if (this.timer && this.due <= due) return;
    clearTimeout(this.timer);
    this.due = due;
    this.timer = window.setTimeout(() => { this.timer = 0; this.again().catch(fail); }, wait);
  }

  async again() {
    const id = this.opened;
    if (!this.sweep || !this.isConnected) return;
    const sweep = await api.sweep(id);
    if (this.opened === id && this.isConnected) this.put(sweep);
  }
}
