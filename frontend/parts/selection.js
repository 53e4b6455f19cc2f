/** `<moe-selection>`: what is selected, always in words, with a way to drop each part of it and all of it. */

/** @import { Session, TokenFacts } from "../lib/session.js" */

import { fill, h } from "../lib/dom.js";
import { number, percent, visible } from "../lib/format.js";
import { fail } from "../lib/toast.js";

export class MoeSelection extends HTMLElement {
  words = h("div", { class: "selection-words", role: "status", "aria-live": "polite" });
  ears = new AbortController();

  /** @param {Session} session */
  open(session) {
    this.ears.abort();
    this.ears = new AbortController();
    const { signal } = this.ears;
    fill(this, this.words);
    session.addEventListener("change", () => this.refresh(session).catch(fail), { signal });
    session.addEventListener("hits", () => this.refresh(session).catch(fail), { signal });
    this.refresh(session).catch(fail);
  }

  disconnectedCallback() { this.ears.abort(); }

  turn = 0;

  /** @param {Session} session */
  async refresh(session) {
    const turn = ++this.turn;
    const { token } = session;
    const facts = token === null ? null : await session.facts(token);
    if (turn === this.turn) this.write(session, facts);
  }

  /** @param {Session} session @param {TokenFacts | null} facts */
  write(session, facts) {
    const { expert, picked, query, layer } = session;
    const parts = [h("strong", null, `Layer ${layer}`)];
    if (expert !== null) {
      parts.push(part(session, [h("span", { class: "swatch", style: { "--c": session.shownColour(expert) } }), `Expert ${expert}`], "expert", { expert: null }));
    }
    if (facts) {
      parts.push(part(session, ["token ", h("code", null, `“${visible(facts.text)}”`), ` (${number(facts.index)})`], "token", { token: null }));
      parts.push(h("span", { class: "gates" }, "→ ", facts.experts.map((e, slot) => h("button", {
        type: "button", class: "expert-chip", style: { "--c": session.expertColour(e) }, onclick: () => session.select({ expert: e }),
      }, h("span", { class: "swatch" }), `E${e} `, h("span", { class: "num" }, facts.dropped[slot] ? "dropped" : percent(facts.gates[slot])))),
      facts.experts.length === 0 && "no expert at this layer"));
    }
    if (picked) parts.push(part(session, [`${number(picked.size)} tokens from the lasso`], "lasso", { sel: null }));
    if (query) parts.push(part(session, ["search ", h("code", null, `“${query}”`), ` (${number(session.hitTotal)})`], "search", { q: null }));
    if (!session.hasSelection) parts.push(h("span", { class: "muted" }, "nothing selected. Hover a token, click an expert, or drag a lasso around points of the map."));
    fill(this.words, parts);
    this.querySelector(".clear")?.remove();
    if (session.hasSelection) this.append(h("button", { type: "button", class: "small clear", title: "Clear the selection (Esc)", onclick: () => session.clear() }, "Clear", h("kbd", null, "Esc")));
  }
}

/** @param {Session} session @param {(Node | string)[]} words @param {string} name @param {Record<string, null>} without */
function part(session, words, name, without) {
  return h("span", { class: "selection-part" }, words, h("button", { type: "button", class: "icon", "aria-label": `Drop the ${name} from the selection`, onclick: () => session.select(without) }, "×"));
}

customElements.define("moe-selection", MoeSelection);
