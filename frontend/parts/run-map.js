/** `<moe-run-map>`: where the same tokens lie at the step that the page looks at, by whom they are taken or what they are. */

/** @import { RunRow, TraceRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { state } from "../lib/state.js";
import { MoeFilm } from "./map-film.js";

export class MoeRunMap extends HTMLElement {
  film = new MoeFilm();
  color = h("select", { "aria-label": "Colour points by" });
  words = h("output", { class: "num" });
  inspect = h("a", { class: "button small" }, "Inspect this snapshot");
  foot = h("div", { class: "snapshot-tools" }, this.words, h("label", { class: "field" }, h("span", { class: "field-name" }, "Colour"), this.color), this.inspect);
  /** @type {TraceRow[]} */
  rows = [];
  of = "";
  turn = 0;
  /** @type {RunRow | null} */
  run = null;

  connectedCallback() {
    this.film.explain = "The same probe text at every snapshot, placed by what the router sees; each map starts from the one before, so that a token stays put unless its vector moves. Drag the slider or press play. Scroll to zoom; click a point to read the token in its text.";
    this.film.addEventListener("token", (event) => {
      const { token } = /** @type {CustomEvent} */ (event).detail;
      const row = this.rowAt(state.int("step"));
      if (row) state.go("inspect", row.id, { layer: this.film.figure?.layout.meta.layer, token });
    });
    this.color.addEventListener("change", () => state.set({ color: this.color.value === "expert" ? null : this.color.value }));
  }

  get stops() { return this.rows.flatMap((row) => (row.step === null ? [] : [row.step])); }

  /** The snapshot that shows a step: the last one until then. @param {number | null} step */
  rowAt(step) {
    if (step === null) return this.rows[this.rows.length - 1];
    return this.rows.findLast((row) => (row.step ?? 0) <= step) ?? this.rows[0];
  }

  /** The snapshots of a run, as they are now. @param {RunRow} run */
  async open(run) {
    this.run = run;
    const key = `${run.id} ${run.snapshots.join()}`;
    if (!run.snapshots.length) {
      const live = run.status === "running" || run.status === "queued" || run.status === "paused";
      this.of = "";
      this.rows = [];
      const section = this.closest("section");
      if (section) section.hidden = !live;
      fill(this, h("header", null, h("h2", null, "Token map over the run")), h("p", { class: "muted empty-line" }, live ? "The first snapshot of the probe text is still to come; the map appears here by itself." : "This run took no snapshots."));
      return;
    }
    if (key === this.of) return;
    if (!this.film.isConnected) fill(this, h("header", null, h("h2", null, "Token map over the run")), h("p", { class: "muted map-wait" }, "Placing points…"));
    const turn = ++this.turn;
    const wanted = new Set(run.snapshots);
    const rows = (await api.traces()).filter((row) => wanted.has(row.id)).sort((a, b) => (a.step ?? 0) - (b.step ?? 0));
    if (turn !== this.turn) return;
    this.rows = rows;
    this.of = key;
    fill(this.color, ["expert", ...(rows[0]?.labels.map((label) => label.name) ?? []), "confidence"].map((name) => h("option", { value: name }, name)));
    const section = this.closest("section");
    if (section) section.hidden = false;
    if (!this.film.isConnected) fill(this, this.film, this.foot);
  }

  /** @param {TraceRow} row @param {number | null} layer */
  what(row, layer) {
    const color = state.get("color") ?? "expert";
    return { owner: /** @type {const} */ ("runs"), of: this.run?.id ?? "", name: "token_map", options: { step: row.step, layer: layer ?? row.layers[0]?.layer ?? 0, color } };
  }

  /** @param {number | null} step @param {number | null} layer @param {number | null} expert @param {string | null} colour of the expert @param {number} ms */
  async show(step, layer, expert, colour, ms) {
    const row = this.rowAt(step);
    if (!row || !this.film.isConnected) return;
    const at = this.rows.indexOf(row);
    this.words.textContent = `snapshot ${number(at + 1)} of ${number(this.rows.length)}, step ${number(row.step)}`;
    this.color.value = state.get("color") ?? "expert";
    this.inspect.href = `#/inspect/${encodeURIComponent(row.id)}?layer=${layer ?? row.layers[0]?.layer ?? 0}`;
    const what = this.what(row, layer);
    if (JSON.stringify(what) !== JSON.stringify(this.film.what)) await this.film.turnTo(what, ms);
    this.film.focusTokens(expert === null ? null : this.tokensOf(expert), expert, colour);
  }

  /** Tokens whose best expert it is. @param {number} expert */
  tokensOf(expert) {
    const traces = (this.film.figure?.data ?? []).filter((trace) => trace.meta?.role === "tokens");
    return new Set(traces.flatMap((trace) => Array.from(/** @type {number[]} */ (trace.customdata)).filter((_, i) => trace.meta?.experts?.[i] === expert)));
  }

  /** Fetch what a replay needs. @param {number | null} layer */
  async ready(layer) {
    for (const row of this.rows) {
      this.film.legend.textContent = `Fetching the maps: ${this.rows.indexOf(row) + 1} of ${this.rows.length}`;
      await this.film.fetched(this.what(row, layer)).catch(() => undefined);
    }
    this.film.legend.textContent = "";
  }
}

customElements.define("moe-run-map", MoeRunMap);
