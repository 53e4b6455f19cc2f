/** Bars of how a group of tokens spreads over a label's values, each with a tick where all labelled tokens stand. */

/** @import { Session } from "../lib/session.js" */
/** @import { Profile } from "../lib/types.d.ts" */

import { h } from "../lib/dom.js";
import { number, percent, times, title } from "../lib/format.js";

const FEW = 8;

/**
 * @param {Session} session @param {string} label @param {Profile[]} rows @param {string} whose e.g. "E5's assignments"
 * @param {string} unit what was counted
 * @returns {HTMLElement}
 */
export function profile(session, label, rows, whose, unit) {
  const values = session.labelInfo(label)?.values ?? [];
  const colours = session.trace.label_palette[label] ?? [];
  const top = Math.max(...rows.map((row) => Math.max(row.share ?? 0, row.base ?? 0)), 1e-9);
  const labelled = rows.reduce((sum, row) => sum + row.count, 0);
  const bars = rows.map((row, i) => h("div", { class: "bar-row", hidden: i >= FEW, title: sentence(row, whose) },
    h("span", { class: "bar-name" }, row.value),
    h("span", { class: "bar", style: { "--c": colours[values.indexOf(row.value)] ?? "var(--muted)" } },
      h("span", { class: "bar-fill", style: { width: `${((row.share ?? 0) / top) * 100}%` } }),
      row.base !== null && h("span", { class: "bar-base", style: { left: `${(row.base / top) * 100}%` } })),
    h("span", { class: "num" }, percent(row.share)),
    h("span", { class: `num lift ${row.lift === null ? "" : row.lift > 0.3 ? "up" : row.lift < -0.3 ? "down" : ""}` }, row.lift === null ? "few" : times(row.lift))));
  const more = rows.length > FEW && h("button", {
    type: "button", class: "small quiet",
    onclick: (/** @type {Event} */ event) => { bars.forEach((bar) => { bar.hidden = false; }); /** @type {HTMLElement} */ (event.currentTarget).remove(); },
  }, `Show all ${rows.length} values`);
  return h("div", { class: "profile" },
    h("h4", null, title(label), h("span", { class: "muted" }, ` n = ${number(labelled)} labelled ${unit}`)),
    rows.length === 0 && h("p", { class: "muted" }, "None of these tokens carries this label."), bars, more);
}

/** @param {Profile} row @param {string} whose */
function sentence(row, whose) {
  const lift = row.lift === null ? "not enough data to compare" : `${times(row.lift)} as often as among all`;
  return `${row.value}: ${percent(row.share)} of ${whose} (${number(row.count)}); ${percent(row.base)} of all labelled; ${lift}`;
}
