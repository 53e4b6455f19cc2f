/** `<moe-picked>`: the lassoed tokens: where they go, against where all tokens go, and what labels they carry. */

/** @import { Session } from "../lib/session.js" */
/** @import { Picked } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { fail } from "../lib/toast.js";
import { profile } from "./profile.js";

export class MoePicked extends HTMLElement {
  /** @param {Session} session */
  async show(session) {
    const { picked } = session;
    if (!picked) return;
    const key = `${session.trace.id} ${session.pickedText}`;
    try {
      if (key !== this.shown) {
        this.shown = key;
        this.answer = await api.picked(session.trace.id, [...picked]);
      }
      if (key === this.shown && this.answer) this.write(session, this.answer);
    } catch (error) {
      this.shown = "";
      fail(error);
    }
  }

  shown = "";
  /** @type {Picked | null} */
  answer = null;

  /** @param {Session} session @param {Picked} picked */
  write(session, picked) {
    const top = Math.max(...picked.layers.flatMap(({ experts }) => experts.map(({ share }) => share)), 1e-9);
    fill(this,
      h("p", { class: "small-text muted" }, `${number(picked.n)} of ${number(picked.total)} tokens. Darker cells take more of their assignments; hover a cell for the share and for what all tokens give. Click one to select the expert.`),
      h("div", { class: "picked-grid", role: "group", "aria-label": "Layer by expert share of the lassoed tokens" }, picked.layers.map(({ layer, experts }) =>
        h("div", { class: "picked-row" }, h("span", { class: "num muted" }, `L${layer}`),
          h("div", { class: "picked-cells", style: { "--count": experts.length } }, experts.map(({ expert, share, base }) => {
            const words = `Layer ${layer}, expert ${expert}: ${percent(share)} of the selection's assignments; ${percent(base)} of all tokens'`;
            const on = layer === session.layer && expert === session.expert;
            return h("button", { type: "button", class: `picked-cell${on ? " on" : ""}`, title: words, "aria-label": words, style: { "--share": `${Math.round((share / top) * 100)}%`, "--c": session.expertColour(expert, layer) }, onclick: () => session.select({ layer, expert }) });
          }))))),
      Object.entries(picked.labels).map(([label, rows]) => profile(session, label, rows, "the lassoed tokens")));
  }
}

customElements.define("moe-picked", MoePicked);
