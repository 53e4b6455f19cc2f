/** Short messages that do not interrupt: the server's sentence as it is, announced politely, gone after a while. */

import { h } from "./dom.js";

const LIFE_MS = { error: 14000, info: 6000 };

/**
 * @param {string} text @param {{ kind?: "error" | "info", action?: { label: string, run: () => void } }} [options]
 */
export function toast(text, { kind = "info", action } = {}) {
  const area = document.getElementById("toasts");
  if (!area) return;
  const same = [...area.children].find((old) => old instanceof HTMLElement && old.dataset.text === text);
  same?.remove();
  const close = () => note.remove();
  const note = h("div", { class: `toast ${kind}`, "data-text": text },
    h("p", null, text),
    action && h("button", { type: "button", class: "small", onclick: () => { action.run(); close(); } }, action.label),
    h("button", { type: "button", class: "icon", "aria-label": "Close this message", onclick: close }, "×"));
  area.append(note);
  while (area.children.length > 4) area.firstElementChild?.remove();
  let timer = window.setTimeout(close, LIFE_MS[kind]);
  note.addEventListener("pointerenter", () => clearTimeout(timer));
  note.addEventListener("pointerleave", () => { timer = window.setTimeout(close, 4000); });
}

/** Show a failure, unless it is only a request that the page itself gave up. @param {unknown} error */
export function fail(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  if (!(error instanceof Error)) { toast(String(error), { kind: "error" }); return; }
  toast(error.message, { kind: "error" });
  if (error.name !== "ApiError") throw error;
}
