/** The layer x expert heat-map of a selection: where its tokens go, against where all tokens go. */

/** @import { FigureJson, Picked } from "../lib/types.d.ts" */

import { number, percent, times } from "../lib/format.js";

/** Fewer assignments than this, seen and expected, say nothing: the cell is left blank. */
const FEW = 5;

/**
 * Turn the figure of all tokens' load into that of the selection's: log2 of its share over the share of all tokens.
 * @param {FigureJson} figure @param {Picked} picked
 */
export function pickedLoad(figure, picked) {
  const heat = figure.data.find((trace) => trace.meta?.role === "cells");
  if (!heat) return;
  const rows = new Map(picked.layers.map(({ layer, experts }) => [`L${layer}`, new Map(experts.map((row) => [`E${row.expert}`, row]))]));
  const cells = heat.y.map((/** @type {string} */ y) => heat.x.map((/** @type {string} */ x) => cell(y, x, rows.get(y)?.get(x), picked.n)));
  heat.z = cells.map((/** @type {{ z: number | null }[]} */ row) => row.map(({ z }) => z));
  heat.text = cells.map((/** @type {{ text: string }[]} */ row) => row.map(({ text }) => text));
  heat.hovertemplate = "%{text}<extra></extra>";
  heat.zmin = -3;
  heat.zmax = 3;
  const ticks = [-3, -2, -1, 0, 1, 2, 3];
  heat.colorbar = { ...heat.colorbar, title: { ...heat.colorbar?.title, text: "× all tokens" }, tickvals: ticks, ticktext: ["≤ 1/8", "1/4", "1/2", "1×", "2×", "4×", "≥ 8×"] };
  const { meta } = figure.layout;
  meta.title = "Load of the lassoed tokens";
  meta.caption = `Share of the selection's assignments over the share of all tokens' (1 = as all tokens), per MoE layer and expert; n = ${number(picked.n)} of ${number(picked.total)} tokens. Blank: fewer than ${FEW} assignments, seen and expected.`;
}

/** @param {string} layer @param {string} expert @param {{ share: number, base: number } | undefined} row @param {number} n */
function cell(layer, expert, row, n) {
  if (!row) return { z: null, text: "" };
  const ratio = Math.log2(Math.max(row.share, 1e-9) / Math.max(row.base, 1e-9));
  const enough = Math.max(row.share, row.base) * n >= FEW;
  const text = `<b>${layer} · ${expert}</b><br>${percent(row.share)} of the selection's assignments<br>${percent(row.base)} of all tokens'<br>${enough ? `${times(ratio)} as all tokens` : "not enough data to compare"}`;
  return { z: enough ? Math.max(-3, Math.min(3, ratio)) : null, text };
}
