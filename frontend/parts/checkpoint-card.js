/** One checkpoint of the library as a card: what it is, what to do with it. */

/** @import { Checkpoint, TraceRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { confirmed } from "../lib/ask.js";
import { h } from "../lib/dom.js";
import { bytes, compact, number, plural, when } from "../lib/format.js";
import { fail, toast } from "../lib/toast.js";
import { MoeTraceForm } from "./trace-form.js";

/**
 * @param {Checkpoint} checkpoint @param {TraceRow[]} traces those of this checkpoint, newest first @param {() => void} changed
 * @returns {HTMLElement}
 */
export function checkpointCard(checkpoint, traces, changed) {
  const { layers } = checkpoint;
  const experts = [...new Set(layers.map((layer) => layer.num_experts))].sort((a, b) => a - b);
  const ks = [...new Set(layers.map((layer) => layer.k))];
  const broken = checkpoint.problems.length > 0;
  /** @type {[string, string][]} */
  const facts = [
    ["family", checkpoint.family || "–"], ["parameters", compact(checkpoint.params)],
    ["layers × experts", `${layers.length || "–"} × ${experts.length > 2 ? `${experts[0]}–${experts[experts.length - 1]}` : experts.join(", ") || "–"}`],
    ["a token visits", ks.length ? `${ks.map((k) => k ?? "some").join(" or ")} of them` : "–"],
    ["traced", traces.length ? `${number(traces[0].tokens)} ${checkpoint.kind === "text" ? "tokens" : checkpoint.kind === "patches" ? "patches" : "vectors"}` : "not yet"],
    ["size", bytes(checkpoint.size_bytes)],
  ];
  return h("article", { class: `card checkpoint${broken ? " broken" : ""}`, "data-id": checkpoint.id },
    h("h3", null, checkpoint.name, h("span", { class: `chip ${checkpoint.origin}` }, checkpoint.origin === "path" ? "opened in place" : checkpoint.origin)),
    checkpoint.description && h("p", null, checkpoint.description),
    broken && h("ul", { class: "problems" }, checkpoint.problems.map((problem) => h("li", null, problem))),
    h("dl", { class: "card-facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", { class: "num" }, value)))),
    traces.length > 1 && h("details", { class: "more-traces" }, h("summary", null, `All ${plural(traces.length, "trace")}`),
      h("ul", null, traces.map((trace) => traceLine(trace, changed)))),
    h("div", { class: "card-foot" },
      traces.length > 0 && h("a", { class: "button primary", href: `#/inspect/${encodeURIComponent(traces[0].id)}` }, "Inspect"),
      !broken && h("button", { type: "button", class: traces.length ? "" : "primary", onclick: () => traceDialog(checkpoint) }, checkpoint.kind === "text" ? "Trace new text" : "Trace more data"),
      checkpoint.origin !== "sample" && checkpoint.origin !== "run" && deleteButton(`Forget ${checkpoint.name}?${checkpoint.origin === "upload" ? " Its uploaded files are deleted." : " Its files stay."}`, () => api.deleteCheckpoint(checkpoint.id), changed)));
}

/** @param {TraceRow} trace @param {() => void} changed */
export function traceLine(trace, changed) {
  return h("li", { class: "trace-line" },
    h("a", { href: `#/inspect/${encodeURIComponent(trace.id)}` }, trace.name), h("span", { class: "muted num" }, `${number(trace.tokens)} tokens`), h("span", { class: "muted" }, when(trace.created)),
    trace.origin !== "sample" && trace.origin !== "run" && deleteButton(`Delete the trace ${trace.name}?`, () => api.deleteTrace(trace.id), changed));
}

/** A button that asks once before it deletes. @param {string} question @param {() => Promise<void>} act @param {() => void} changed */
export function deleteButton(question, act, changed) {
  return h("button", { type: "button", class: "quiet danger", onclick: async () => {
    if (!await confirmed(question, "Delete", "Keep")) return;
    try { await act(); changed(); } catch (error) { fail(error); }
  } }, "Delete");
}

/** @param {Checkpoint} checkpoint */
function traceDialog(checkpoint) {
  const form = new MoeTraceForm();
  const dialog = h("dialog", { class: "trace-dialog", "aria-label": `Trace ${checkpoint.name}` },
    h("header", null, h("h2", null, `Run data through ${checkpoint.name}`), h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×")), form);
  dialog.addEventListener("close", () => dialog.remove());
  addEventListener("popstate", () => dialog.close(), { once: true });
  form.addEventListener("traced", () => dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  form.open(checkpoint).catch((error) => { dialog.close(); toast(error.message, { kind: "error" }); });
}
