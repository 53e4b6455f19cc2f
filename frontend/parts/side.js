/** `<moe-side>`: tabs over the layer's experts, the selected expert and the lassoed tokens; the newest selection is in front. */

/** @import { Session } from "../lib/session.js" */

import { fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { MoeExpert } from "./expert-card.js";
import { MoeExperts } from "./expert-list.js";
import { MoePicked } from "./picked-card.js";

/** @typedef {"list" | "expert" | "picked"} Tab */

export class MoeSide extends HTMLElement {
  list = new MoeExperts();
  card = new MoeExpert();
  lasso = new MoePicked();
  tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Experts" });
  body = h("div", { class: "side-body", role: "tabpanel", tabIndex: 0 });
  /** @type {Tab} */
  tab = "list";
  last = { expert: /** @type {number | null} */ (null), layer: -1, picked: "" };
  ears = new AbortController();

  /** @param {Session} session */
  open(session) {
    this.ears.abort();
    this.ears = new AbortController();
    fill(this, this.tabs, this.body);
    session.addEventListener("change", () => this.refresh(session), { signal: this.ears.signal });
    this.refresh(session);
  }

  disconnectedCallback() { this.ears.abort(); }

  /** @param {Session} session */
  refresh(session) {
    const { expert, picked, pickedText, layer } = session;
    if (picked && pickedText !== this.last.picked) this.tab = "picked";
    if (expert !== null && (expert !== this.last.expert || (layer !== this.last.layer && this.tab !== "picked"))) this.tab = "expert";
    if ((this.tab === "expert" && expert === null) || (this.tab === "picked" && !picked)) this.tab = expert !== null ? "expert" : picked ? "picked" : "list";
    this.last = { expert, layer, picked: picked ? pickedText : "" };
    this.write(session);
  }

  /** @param {Session} session */
  write(session) {
    const { expert, picked } = session;
    /** @type {[Tab, string][]} */
    const tabs = [["list", `Experts of layer ${session.layer}`]];
    if (expert !== null) tabs.push(["expert", `Expert ${expert}`]);
    if (picked) tabs.push(["picked", `Lasso (${number(picked.size)})`]);
    fill(this.tabs, tabs.map(([tab, words]) => h("button", {
      type: "button", role: "tab", "aria-selected": String(tab === this.tab),
      onclick: () => { this.tab = tab; this.write(session); },
    }, words)));
    const shown = this.tab === "expert" ? this.card : this.tab === "picked" ? this.lasso : this.list;
    if (this.body.firstChild !== shown) { fill(this.body, shown); this.body.scrollTop = 0; }
    shown.show(session);
  }
}

customElements.define("moe-side", MoeSide);
