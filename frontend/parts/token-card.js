/** The card beside a hovered token: where the router sent it, with what weight, and what the token is. */

/** @import { Session, TokenFacts } from "../lib/session.js" */

import { fill, h } from "../lib/dom.js";
import { percent, visible } from "../lib/format.js";

export class TokenCard {
  constructor() {
    this.element = h("div", { class: "token-card", role: "tooltip", hidden: true });
  }

  /** @param {Session} session @param {TokenFacts} facts @param {Element} anchor */
  show(session, facts, anchor) {
    if (!this.element.isConnected) document.body.append(this.element);
    const labels = Object.entries(facts.labels);
    fill(this.element,
      h("p", { class: "token-card-head" }, h("code", null, `“${visible(facts.text)}”`), h("span", null, `token ${facts.index} · layer ${session.layer}`)),
      facts.experts.length === 0 && h("p", null, "No expert took this token at this layer."),
      facts.experts.map((expert, slot) => h("div", { class: "gate", style: { "--c": session.expertColour(expert) } },
        h("span", null, `E${expert}`),
        h("span", { class: "gate-bar" }, h("span", { style: { width: `${Math.min(1, Math.max(0, facts.gates[slot])) * 100}%` } })),
        h("span", { class: "num" }, facts.dropped[slot] ? "dropped" : percent(facts.gates[slot])))),
      labels.length > 0 && h("p", { class: "token-card-labels" }, labels.map(([name, value]) => h("span", null, `${name}: `, value === null ? h("em", null, "unlabelled") : value))),
      !facts.inMap && h("p", { class: "muted" }, "Not among the points of the map (the map shows a sample)."));
    this.element.hidden = false;
    const at = anchor.getClientRects()[0] ?? anchor.getBoundingClientRect();
    const box = this.element.getBoundingClientRect();
    const below = at.bottom + 6 + box.height < innerHeight;
    this.element.style.left = `${Math.max(6, Math.min(at.left, innerWidth - box.width - 6))}px`;
    this.element.style.top = `${below ? at.bottom + 6 : Math.max(6, at.top - box.height - 6)}px`;
  }

  hide() {
    this.element.hidden = true;
    this.element.remove();
  }
}
