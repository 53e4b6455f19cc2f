/** `<moe-snapshots>`: the token map at every snapshot of a run, with a slider over the steps. */

/** @import { RunRow, TraceRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { state } from "../lib/state.js";
import { MoeFigure } from "./figure.js";

export class MoeSnapshots extends HTMLElement {
  figure = new MoeFigure();
  slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Snapshot" });
  words = h("output", { class: "num" });
  color = h("select", { "aria-label": "Colour points by" });
  inspect = h("a", { class: "button small" }, "Inspect this snapshot");
  /** @type {TraceRow[]} */
  rows = [];
  of = "";
  turn = 0;
  /** @type {number | null} */
  layer = null;

  connectedCallback() {
    this.figure.drag = "pan";
    this.figure.addEventListener("token", (event) => {
      const { token } = /** @type {CustomEvent} */ (event).detail;
      const row = this.rows[Number(this.slider.value)];
      if (row) state.go("inspect", row.id, { layer: this.figure.figure?.layout.meta.layer, token });
    });
    this.slider.addEventListener("input", () => state.set({ step: this.rows[Number(this.slider.value)]?.step ?? null }));
    this.color.addEventListener("change", () => state.set({ color: this.color.value === "expert" ? null : this.color.value }));
  }

  /** @param {RunRow} run @param {number | null} layer */
  async open(run, layer) {
    const key = `${run.id} ${run.snapshots.join()}`;
    this.layer = layer;
    if (!run.snapshots.length) {
      this.of = "";
      const live = run.status === "running" || run.status === "queued";
      fill(this, h("header", null, h("h2", null, "Token map over the run")), h("p", { class: "muted empty-line" }, live ? "The first snapshot of the probe text is still to come; the map appears here by itself." : "This run took no snapshots."));
      return;
    }
    if (key !== this.of) {
      const wanted = new Set(run.snapshots);
      const turn = ++this.turn;
      const rows = (await api.traces()).filter((row) => wanted.has(row.id)).sort((a, b) => (a.step ?? 0) - (b.step ?? 0));
      if (turn !== this.turn) return;
      this.rows = rows;
      this.of = key;
      this.slider.max = String(Math.max(0, this.rows.length - 1));
      fill(this.color, ["expert", ...(this.rows[0]?.labels.map((label) => label.name) ?? []), "confidence"].map((name) => h("option", { value: name }, name)));
      if (!this.figure.isConnected) fill(this, this.figure, h("div", { class: "snapshot-tools" }, h("label", { class: "field grow" }, h("span", { class: "field-name" }, "Step"), this.slider, this.words), h("label", { class: "field" }, h("span", { class: "field-name" }, "Colour"), this.color), this.inspect));
      this.figure.explain = "The same probe text at every snapshot, placed by what the router sees. Drag the slider to see experts take shape; without a choice the newest snapshot is shown. Scroll to zoom; click a point to read the token in its text.";
    }
    await this.show();
  }

  async show() {
    const step = state.int("step");
    let at = this.rows.findIndex((row) => row.step === step);
    if (at < 0) at = this.rows.length - 1;
    const row = this.rows[at];
    if (!row) return;
    this.slider.value = String(at);
    this.words.textContent = `${number(row.step)} (${number(at + 1)} of ${number(this.rows.length)}${step === null ? ", newest" : ""})`;
    const color = state.get("color") ?? "expert";
    this.color.value = color;
    const layer = this.layer ?? row.layers[0]?.layer ?? 0;
    this.inspect.href = `#/inspect/${encodeURIComponent(row.id)}?layer=${layer}`;
    await this.figure.show({ owner: "traces", of: row.id, name: "token_map", options: { layer, color } });
  }
}

customElements.define("moe-snapshots", MoeSnapshots);
