/** `<moe-measures>`: every measure of the layer beside its null, how far from it, its interval and its n. */

/** @import { Session } from "../lib/session.js" */
/** @import { Measurement } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { number, pValue, title } from "../lib/format.js";

/** What each measure says, in a sentence. @type {Record<string, string>} */
const MEANING = {
  load_ratio: "The busiest expert's load over an even share. 1 is perfectly even.",
  maxvio: "Maximal violation: how far the busiest expert lies above an even share. 0 is perfectly even, 1 is twice the even share.",
  load_cv: "Coefficient of variation of the loads: their standard deviation over their mean.",
  dead_fraction: "Share of experts that get less than 1 % of the mean load.",
  routing_entropy: "Mean entropy of the router's distribution per token: 0 is certain, ln E is undecided.",
  effective_experts: "exp of the mean routing entropy: among how many experts a token hesitates.",
  load_entropy: "Entropy of the mean distribution over experts: ln E where every expert gets as much. Its gap to the routing entropy is what the token tells about the expert.",
  margin: "Score of the last chosen expert minus the first not chosen. Near 0, rounding alone may flip the choice.",
  mutual_information: "How much knowing a token's label tells about its expert (nats). Above its null, experts prefer values of this label; documents are shuffled for labels of documents.",
  silhouette: "How tightly an expert's tokens lie together among the router's inputs, from −1 to 1; measured in the original space, not on the map.",
};

export class MoeMeasures extends HTMLElement {
  ears = new AbortController();
  shown = "";

  /** @param {Session} session */
  open(session) {
    this.ears.abort();
    this.ears = new AbortController();
    session.addEventListener("change", () => this.refresh(session), { signal: this.ears.signal });
    this.refresh(session);
  }

  disconnectedCallback() { this.ears.abort(); }

  /** @param {Session} session */
  async refresh(session) {
    const key = `${session.trace.id} ${session.layer}`;
    if (key === this.shown) return;
    this.shown = key;
    if (!this.firstChild) fill(this, h("p", { class: "muted", role: "status" }, "Measuring against nulls…"));
    this.classList.add("busy");
    try {
      const rows = await api.metrics(session.trace.id, session.layer);
      if (key === this.shown) this.write(session, rows);
    } catch (error) {
      if (key !== this.shown) return;
      this.shown = "";
      fill(this, h("p", null, error instanceof Error ? error.message : String(error)), h("button", { type: "button", onclick: () => this.refresh(session) }, "Try again"));
    } finally {
      if (key === this.shown) this.classList.remove("busy");
    }
  }

  /** @param {Session} session @param {Measurement[]} rows */
  write(session, rows) {
    const heads = [
      ["Measure", ""], ["Value", "What was measured; the unit stands behind it."],
      ["Null", "What chance gives: random routing with the same loads, or shuffled labels. ± is its standard deviation."],
      ["z", "How many standard deviations of the null the value lies from it."],
      ["p", "How often chance alone gives a value as extreme."],
      ["95 % interval", "Bootstrap interval of the value; documents are resampled where there are any."],
      ["n", "How many tokens (or experts, or vectors) the value rests on."], ["Of", "The tensor that was measured."],
    ];
    fill(this, h("div", { class: "table-scroll", tabIndex: 0, role: "group", "aria-label": "Measures" }, h("table", { class: "dense measures" },
      h("caption", { class: "visually-hidden" }, `Measures of layer ${session.layer}`),
      h("thead", null, h("tr", null, heads.map(([head, help], i) => h("th", { scope: "col", class: i > 0 && i < 7 ? "num" : "" }, head, help ? tip(help) : null)))),
      h("tbody", null, rows.map((row) => this.row(session, row))))));
  }

  /** @param {Session} session @param {Measurement} row */
  row(session, row) {
    const meaning = MEANING[row.metric];
    const far = row.z !== null && Math.abs(row.z) >= 3;
    const [low, high] = row.interval ?? [null, null];
    const name = row.label && session.labelInfo(row.label)
      ? h("button", { type: "button", class: "token-link", title: `Show ${row.label} against experts`, onclick: () => session.select({ label: row.label }) }, row.label)
      : row.label;
    const unit = row.unit && row.unit !== "1" ? h("span", { class: "muted" }, ` ${row.unit}`) : null;
    return h("tr", { class: far ? "far" : "" },
      h("th", { scope: "row" }, title(row.metric), name && [" · ", name], meaning || row.note ? tip([meaning, row.note].filter(Boolean).join(" ")) : null),
      h("td", { class: "num" }, h("strong", null, number(row.value)), unit),
      h("td", { class: "num" }, number(row.null), row.null_std === null ? null : h("span", { class: "muted" }, ` ± ${number(row.null_std, 2)}`)),
      h("td", { class: "num" }, number(row.z)), h("td", { class: "num" }, pValue(row.p)),
      h("td", { class: "num" }, low === null && high === null ? "–" : `${number(low)} to ${number(high)}`),
      h("td", { class: "num" }, number(row.n)), h("td", { class: "muted" }, row.tensor));
  }
}

customElements.define("moe-measures", MoeMeasures);
