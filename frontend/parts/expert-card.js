/** `<moe-expert>`: one expert of one layer: how much it is used, on what, and in whose company. */

/** @import { Session } from "../lib/session.js" */
/** @import { ExpertCard } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { number, percent, times, visible } from "../lib/format.js";
import { fail } from "../lib/toast.js";
import { profile } from "./profile.js";

export class MoeExpert extends HTMLElement {
  /** @param {Session} session */
  async show(session) {
    const { layer, expert } = session;
    if (expert === null) return;
    const key = `${session.trace.id} ${layer} ${expert} ${session.label}`;
    if (key === this.shown) return;
    this.shown = key;
    this.classList.add("busy");
    try {
      const card = await api.expert(session.trace.id, layer, expert);
      if (key === this.shown) this.write(session, card);
    } catch (error) {
      this.shown = "";
      fill(this, h("p", { class: "muted" }, error instanceof Error ? error.message : String(error)));
      fail(error);
    } finally {
      if (key === this.shown) this.classList.remove("busy");
    }
  }

  shown = "";

  /** @param {Session} session @param {ExpertCard} card */
  write(session, card) {
    const name = `E${card.expert}`;
    const even = card.load_null ? card.load / card.load_null : null;
    fill(this,
      h("header", { class: "expert-head", style: { "--c": session.shownColour(card.expert) } },
        h("button", { type: "button", class: "icon", "aria-label": "Previous expert", title: "Previous expert ( , )", onclick: () => session.stepExpert(-1) }, "‹"),
        h("h3", null, h("span", { class: "swatch" }), `Layer ${card.layer} · Expert ${card.expert}`),
        h("button", { type: "button", class: "icon", "aria-label": "Next expert", title: "Next expert ( . )", onclick: () => session.stepExpert(1) }, "›")),
      h("dl", { class: "facts" },
        fact("Load", `${percent(card.load)}`, `${number(even, 3)}× an even share (${percent(card.load_null)})`,
          "Share of all assignments at this layer that go to this expert. The null is an even share, 1 over the number of experts."),
        fact("Assignments", number(card.assignments), `n = ${number(card.n)} tokens`, "How many token-to-expert assignments this expert got; a token with k experts makes k assignments."),
        fact("Router entropy", card.entropy === null ? "–" : `${number(card.entropy)} nats`, `even: ${number(Math.log(session.layerInfo.num_experts), 3)} nats`,
          "How undecided the router was over the tokens it sent here. 0 is certain; the even value is the logarithm of the number of experts."),
        fact("Mean gate", number(card.mean_gate), "over its tokens", "The mean weight with which this expert's output enters the sum.")),
      Object.entries(ordered(card.labels, session.label)).map(([label, rows]) => profile(session, label, rows, `${name}'s assignments`, "assignments")),
      this.tokens(session, card), this.contexts(session, card), this.partners(session, card));
  }

  /** @param {Session} session @param {ExpertCard} card */
  tokens(session, card) {
    if (!card.top_tokens.length) return null;
    return h("section", null,
      h("h4", null, "Tokens it prefers", tip("Tokens seen at least five times, by how much more often they come to this expert than other tokens do (lift). “Share” is the share of the token's occurrences that came here. Grey rows are no more than chance would give (false discovery rate 5 %).")),
      h("table", { class: "dense" },
        h("thead", null, h("tr", null, ["Token", "Count", "Share", "Lift"].map((head, i) => h("th", { class: i ? "num" : "" }, head)))),
        h("tbody", null, card.top_tokens.slice(0, 12).map((row) => h("tr", { class: row.significant === false ? "muted" : "" },
          h("td", null, h("button", { type: "button", class: "token-link", onclick: () => session.select({ token: row.token }) }, visible(row.text))),
          h("td", { class: "num" }, number(row.count)), h("td", { class: "num" }, percent(row.share)),
          h("td", { class: "num" }, times(row.lift)))))));
  }

  /** @param {Session} session @param {ExpertCard} card */
  contexts(session, card) {
    if (!card.contexts.length) return h("p", { class: "muted" }, "No token of this text came to this expert.");
    return h("section", null,
      h("h4", null, "Where it is surest", tip("The tokens with the largest gate of this expert, in their context. Click one to go there.")),
      h("ul", { class: "contexts" }, card.contexts.map((row) => h("li", null,
        h("button", { type: "button", class: "context", onclick: () => session.select({ token: row.token }) },
          h("span", { class: "muted" }, row.before.replaceAll("\n", "↵")), h("mark", { style: { "--c": session.shownColour(card.expert) } }, visible(row.text)),
          h("span", { class: "muted" }, row.after.replaceAll("\n", "↵"))), h("span", { class: "num muted" }, number(row.gate, 2))))));
  }

  /** @param {Session} session @param {ExpertCard} card */
  partners(session, card) {
    if (!card.partners.length) return null;
    return h("section", null,
      h("h4", null, "Chosen together with", tip("How often a token of this expert also goes to that one; beside it what draws by load alone would give.")),
      h("div", { class: "partners" }, card.partners.map((row) => h("button", { type: "button", class: "expert-chip", style: { "--c": session.expertColour(row.expert) }, onclick: () => session.select({ expert: row.expert }) },
        h("span", { class: "swatch" }), `E${row.expert} `, h("span", { class: "num" }, percent(row.p)), h("span", { class: "muted" }, ` by load ${percent(row.null)}`)))));
  }
}

/** @param {string} name @param {string} value @param {string} beside @param {string} help */
function fact(name, value, beside, help) {
  return h("div", null, h("dt", null, name, tip(help)), h("dd", null, h("strong", { class: "num" }, value), h("span", { class: "muted" }, beside)));
}

/** The chosen label first. @template V @param {Record<string, V>} labels @param {string | null} first @returns {Record<string, V>} */
function ordered(labels, first) {
  return first && first in labels ? { [first]: labels[first], ...labels } : labels;
}

customElements.define("moe-expert", MoeExpert);
