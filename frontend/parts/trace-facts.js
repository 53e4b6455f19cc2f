/** What a trace is: of which model, over what, and whether the capture checked itself. */

/** @import { TraceDetail, TraceRow } from "../lib/types.d.ts" */

import { h } from "../lib/dom.js";
import { number, plural, when } from "../lib/format.js";

/** A small badge with the self-check's verdict that opens its list. @param {TraceRow} trace */
export function checkBadge({ self_check: checks }) {
  const bad = checks.filter((check) => !check.passed);
  const words = checks.length === 0 ? "capture not checked" : bad.length ? "capture check failed" : "capture verified";
  const kind = checks.length === 0 ? "none" : bad.length ? "bad" : "good";
  return h("details", { class: `check ${kind}` },
    h("summary", { title: "What the recorder checked about this capture" }, h("span", { class: "check-mark", "aria-hidden": "true" }, kind === "good" ? "✓" : kind === "bad" ? "!" : "?"), words),
    h("div", { class: "check-list" },
      h("p", { class: "muted" }, checks.length ? "Checks made while the routing was recorded:" : "Nothing was checked while this routing was recorded."),
      h("ul", null, checks.map((check) => h("li", { class: check.passed ? "good" : "bad" }, h("strong", null, `${check.passed ? "✓" : "✗"} ${check.name}`), check.detail && ` ${check.detail}`)))));
}

/** A banner where the capture is not to be trusted, a line where the data is made up. @param {TraceRow} trace */
export function warnings(trace) {
  const bad = trace.self_check.filter((check) => !check.passed);
  return h("div", { class: "warnings" },
    bad.length > 0 && h("p", { class: "banner bad", role: "alert" }, `This capture failed ${plural(bad.length, "check")}, so do not trust what is below: ${bad.map((check) => `${check.name}: ${check.detail}`).join("; ")}`),
    trace.data.synthetic === true && h("p", { class: "banner" }, "Synthetic data: these tokens were made up, not written by anyone."));
}

/** @param {TraceDetail} trace */
export function facts(trace) {
  const routers = [...new Set(trace.layers.map((layer) => layer.router))].join(", ");
  const unlabelled = trace.labels.map((label) => `${label.name} (${plural(label.values.length, "value")}, per ${label.scope})`).join(", ");
  /** @type {[string, string][]} */
  const rows = [
    ["Trace", trace.name], ["Tokens", `${number(trace.tokens)} in ${plural(trace.documents, "document")}`],
    ["Data", String(trace.data.corpus ?? trace.data.name ?? "–")], ["Router", routers], ["MoE layers", trace.layers.map((layer) => layer.layer).join(", ")],
    ["Labels", unlabelled || "none"], ["Recorded", when(trace.created) || "–"],
  ];
  return h("dl", { class: "trace-facts" }, rows.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}
