/** `<moe-measures>`: every measure of the layer beside its null, how far from it, its interval and its n. */

/** @import { Session } from "../lib/session.js" */
/** @import { Measurement, MetricInfo } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { number, pValue, title } from "../lib/format.js";

export class MoeMeasures extends HTMLElement {
  ears = new AbortController();
  shown = "";

  connectedCallback() { if (!this.firstChild) fill(this, h("p", { class: "muted", role: "status" }, "Measuring against nulls…")); }

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
    this.classList.add("busy");
    try {
      const [rows, infos] = await Promise.all([api.metrics(session.trace.id, session.layer), api.metricInfo()]);
      if (key === this.shown) this.write(session, rows, new Map(infos.map((info) => [info.name, info])));
    } catch (error) {
      if (key !== this.shown) return;
      this.shown = "";
      fill(this, h("p", null, error instanceof Error ? error.message : String(error)), h("button", { type: "button", onclick: () => this.refresh(session) }, "Try again"));
    } finally {
      if (key === this.shown) this.classList.remove("busy");
    }
  }

  /** @param {Session} session @param {Measurement[]} rows @param {Map<string, MetricInfo>} infos */
  write(session, rows, infos) {
    const heads = [
      ["Measure", ""], ["Value", ""], ["Unit", ""],
      ["Null", "What chance gives: random routing with the same loads, or shuffled labels. ± is its standard deviation."],
      ["z", "How many standard deviations of the null the value lies from it."],
      ["p", "How often chance alone gives a value as extreme."],
      ["95 % interval", "Bootstrap interval of the value; documents are resampled where there are any."],
      ["n", "How many tokens (or experts, or vectors) the value rests on."], ["Of", "The tensor that was measured."],
    ];
    fill(this, h("div", { class: "table-scroll", tabIndex: 0, role: "group", "aria-label": "Measures" }, h("table", { class: "dense measures" },
      h("caption", { class: "visually-hidden" }, `Measures of layer ${session.layer}`),
      h("thead", null, h("tr", null, heads.map(([head, help], i) => h("th", { scope: "col", class: i > 0 && i < 8 && i !== 2 ? "num" : "" }, head, help ? tip(help) : null)))),
      h("tbody", null, rows.map((row) => this.row(session, row, infos.get(row.metric)))))));
  }

  /** @param {Session} session @param {Measurement} row @param {MetricInfo | undefined} info */
  row(session, row, info) {
    const far = row.z !== null && Math.abs(row.z) >= 3;
    const [low, high] = row.interval ?? [null, null];
    const name = row.label && session.labelInfo(row.label)
      ? h("button", { type: "button", class: "token-link", title: `Show ${row.label} against experts`, onclick: () => session.select({ label: row.label }) }, row.label)
      : row.label;
    const words = [info?.definition, info && `Null: ${info.null}`, info?.caveat, row.note].filter(Boolean).join(" ");
    return h("tr", { class: far ? "far" : "" },
      h("th", { scope: "row" }, (info?.title ?? title(row.metric)).replace(" with a label", ""), name && [": ", name], words ? tip(words) : null),
      h("td", { class: "num" }, row.value === null ? h("span", { class: "muted" }, row.note || "not enough data") : h("strong", null, number(row.value))),
      h("td", { class: "muted unit" }, row.unit),
      h("td", { class: "num" }, number(row.null), row.null_std === null ? null : h("span", { class: "muted" }, ` ± ${number(row.null_std, 2)}`)),
      h("td", { class: "num" }, number(row.z)), h("td", { class: "num" }, pValue(row.p)),
      h("td", { class: "num" }, low === null && high === null ? "–" : `${number(low)} to ${number(high)}`),
      h("td", { class: "num" }, number(row.n)), h("td", { class: "muted" }, row.tensor));
  }
}

customElements.define("moe-measures", MoeMeasures);
