/** A question that must be answered before something happens that cannot be taken back. */

import { h } from "./dom.js";

/**
 * @param {string} question @param {string} yes words of the button that does it @param {string} no words of the one that does not
 * @param {string} kind of the first: `danger-fill`, or `primary` where nothing is lost @returns {Promise<boolean>}
 */
export function confirmed(question, yes, no, kind = "danger-fill") {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "ask", "aria-label": question },
      h("p", null, question),
      h("form", { method: "dialog", class: "button-row" }, h("button", { type: "submit", value: "no", autofocus: true }, no), h("button", { type: "submit", value: "yes", class: kind }, yes)));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}
