/** `<moe-experts>`: every expert of the layer as a button: the legend of the colours, with its load and what it prefers. */

/** @import { Session } from "../lib/session.js" */
/** @import { FigureJson } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number, percent, times } from "../lib/format.js";
import { copy } from "../lib/plot.js";
import { fail } from "../lib/toast.js";

/** @typedef {{ expert: number, load: number, prefers: { value: string, lift: number }[] }} Row */

export class MoeExperts extends HTMLElement {
  /** @param {Session} session */
  async show(session) {
    const key = `${session.trace.id} ${session.layer} ${session.label}`;
    if (key !== this.shown) {
      this.shown = key;
      try {
        const rows = await read(session);
        if (key !== this.shown) return;
        this.write(session, rows);
      } catch (error) {
        this.shown = "";
        fail(error);
      }
    }
    for (const button of this.querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.expert) === session.expert));
  }

  shown = "";

  /** @param {Session} session @param {Row[]} rows */
  write(session, rows) {
    const even = 1 / Math.max(1, rows.length);
    const top = Math.max(...rows.map((row) => row.load), even);
    const { label, layer, trace } = session;
    fill(this,
      h("p", { class: "muted small-text" }, `Layer ${layer}: share of assignments; the tick marks an even share (${percent(even)}).`,
        label ? ` At the right the ${label} that the expert takes most above its share.` : "", ` n = ${number(trace.tokens)} tokens.`),
      h("div", { class: "expert-rows" }, rows.map((row) => h("button", {
        type: "button", class: "expert-row", "data-expert": row.expert, "aria-pressed": "false", style: { "--c": session.expertColour(row.expert) },
        onclick: () => session.select({ expert: row.expert === session.expert ? null : row.expert }),
      },
      h("span", { class: "swatch" }), h("span", { class: "num" }, `E${row.expert}`),
      h("span", { class: "bar" }, h("span", { class: "bar-fill", style: { width: `${(row.load / top) * 100}%` } }), h("span", { class: "bar-base", style: { left: `${(even / top) * 100}%` } })),
      h("span", { class: "num" }, percent(row.load)),
      h("span", { class: "prefers" }, row.prefers.map(({ value, lift }) => h("span", null, value, h("span", { class: "num muted" }, ` ${times(lift)}`))))))));
  }
}

/** @param {Session} session @returns {Promise<Row[]>} */
async function read(session) {
  const { layer, label, trace } = session;
  const bars = await figure(trace.id, "expert_load", { layer });
  const loads = bars?.data.find((part) => part.meta?.role === "bars");
  const cells = label ? (await figure(trace.id, "label_expert", { layer, label }).catch(() => null))?.data.find((part) => part.meta?.role === "label_cells") : null;
  return (loads?.x ?? []).map((/** @type {string} */ name, /** @type {number} */ i) => {
    const column = cells ? cells.x.indexOf(name) : -1;
    const prefers = column < 0 ? [] : cells?.y
      .map((/** @type {string} */ value, /** @type {number} */ row) => ({ value, lift: cells.z[row][column] }))
      .filter((/** @type {{ lift: number }} */ cell) => Number.isFinite(cell.lift) && cell.lift > 0.3)
      .sort((/** @type {{ lift: number }} */ a, /** @type {{ lift: number }} */ b) => b.lift - a.lift).slice(0, 1);
    return { expert: Number(name.slice(1)), load: loads?.y[i], prefers };
  });
}

/** @param {string} trace @param {string} name @param {Record<string, string | number>} options @returns {Promise<FigureJson | null>} */
async function figure(trace, name, options) {
  const answer = await api.figure("traces", trace, name, options);
  return "job" in answer ? null : copy(answer);
}

customElements.define("moe-experts", MoeExperts);
