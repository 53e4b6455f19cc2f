/** `<moe-findings>`: two or three sentences worth a look, each a way to what it speaks of. */

/** @import { Session } from "../lib/session.js" */
/** @import { Finding } from "../lib/types.d.ts" */

import { fill, h } from "../lib/dom.js";

export class MoeFindings extends HTMLElement {
  /** @param {Session} session */
  open(session) {
    const { findings } = session.trace;
    fill(this, findings.map((finding) => finding.expert === null && finding.tokens.length === 0
      ? h("p", { class: "finding" }, finding.text)
      : h("button", { type: "button", class: "finding", style: finding.expert === null ? {} : { "--c": session.expertColour(finding.expert, finding.layer) }, onclick: () => go(session, finding) },
        h("span", { class: "finding-text" }, finding.text), h("span", { class: "finding-go", "aria-hidden": "true" }, "Show"))));
  }
}

/** @param {Session} session @param {Finding} finding */
function go(session, finding) {
  session.select({ layer: finding.layer, expert: finding.expert, label: finding.label, token: finding.tokens[0] ?? null, sel: null });
}

customElements.define("moe-findings", MoeFindings);
