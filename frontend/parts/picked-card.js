/** `<moe-picked>`: the lassoed tokens: which experts of the layer take them, and what labels they carry. */

/** @import { Session } from "../lib/session.js" */
/** @import { Picked } from "../lib/types.d.ts" */

import { fill, h } from "../lib/dom.js";
import { number, percent, plural, times } from "../lib/format.js";
import { fail } from "../lib/toast.js";
import { profile } from "./profile.js";

const MOST = 8;

export class MoePicked extends HTMLElement {
  /** @param {Session} session */
  async show(session) {
    const text = session.pickedText;
    try {
      const picked = await session.pickedFacts();
      if (text === session.pickedText) this.write(session, picked);
    } catch (error) { fail(error); }
  }

  /** @param {Session} session @param {Picked} picked */
  write(session, picked) {
    const rows = picked.layers.find(({ layer }) => layer === session.layer)?.experts ?? [];
    const busy = rows.filter((row) => row.share > 0).sort((a, b) => b.share - a.share);
    const top = Math.max(...rows.map((row) => Math.max(row.share, row.base)), 1e-9);
    fill(this,
      h("p", { class: "small-text muted" }, `${number(picked.n)} of ${plural(picked.total, "token")}. Ticks mark what all tokens give. The heat-map beside shows the selection in every layer.`),
      h("div", { class: "profile" }, h("h4", null, `Experts of layer ${session.layer}`, h("span", { class: "muted" }, " share of the selection's assignments")),
        busy.slice(0, MOST).map((row) => h("button", {
          type: "button", class: "bar-row bar-button", style: { "--c": session.expertColour(row.expert) }, onclick: () => session.select({ expert: row.expert }),
          title: `E${row.expert}: ${percent(row.share)} of the selection's assignments, ${percent(row.base)} of all tokens'`,
        },
        h("span", { class: "bar-name" }, h("span", { class: "swatch" }), ` E${row.expert}`),
        h("span", { class: "bar" }, h("span", { class: "bar-fill", style: { width: `${(row.share / top) * 100}%` } }), h("span", { class: "bar-base", style: { left: `${(row.base / top) * 100}%` } })),
        h("span", { class: "num" }, percent(row.share)), h("span", { class: "num lift" }, times(Math.log2(row.share / row.base))))),
        busy.length > MOST && h("p", { class: "muted small-text" }, `and ${plural(busy.length - MOST, "more expert")}`)),
      Object.entries(picked.labels).map(([label, values]) => profile(session, label, values, "the lassoed tokens", "tokens")));
  }
}

customElements.define("moe-picked", MoePicked);
