/** What has come since a figure was drawn, sketched over it at once: the figure itself is drawn again when there is time. */

/** @import { FigureJson, GraphDiv, PlotTrace } from "../lib/types.d.ts" */

import { svg } from "../lib/dom.js";

/** How many points of each trace a drawing holds. @param {FigureJson} figure */
export function lengths(figure) { return figure.data.map((trace) => trace.x?.length ?? 0); }

/**
 * The missing ends of curves and bands.
 * @param {GraphDiv} graph as drawn @param {FigureJson} figure as it is now @param {number[]} drawn points that are drawn, by trace
 */
export function tail(graph, figure, drawn) {
  const { xaxis, yaxis } = graph._fullLayout;
  if (!xaxis || !yaxis) return [];
  const across = (/** @type {number} */ x) => (xaxis._offset + Math.min(xaxis._length, xaxis.l2p(x))).toFixed(1);
  const down = (/** @type {number} */ y) => (yaxis._offset + Math.max(0, Math.min(yaxis._length, yaxis.d2p?.(y) ?? yaxis.l2p(y)))).toFixed(1);
  const shapes = [];
  /** Heights of the bands below, by step. @type {Map<number, number>} */
  const stacked = new Map();
  for (const [i, trace] of figure.data.entries()) {
    const style = graph.data[i];
    const from = drawn[i] ?? 0;
    const { x = [], y = [] } = trace;
    if (!style || from >= x.length || x.length < 2) continue;
    const start = Math.max(0, from - 1);
    if (trace.stackgroup) shapes.push(band(trace, style, start, stacked, across, down));
    else if (String(style.mode ?? "lines").includes("lines")) {
      const points = Array.from(x.slice(start), (at, k) => `${across(Number(at))},${down(Number(y[start + k]))}`);
      shapes.push(svg("polyline", { points: points.join(" "), fill: "none", stroke: style.line?.color ?? "currentColor", "stroke-width": style.line?.width ?? 2, opacity: style.opacity ?? 1 }));
    }
  }
  return shapes;
}

/**
 * @param {PlotTrace} trace @param {PlotTrace} style @param {number} start @param {Map<number, number>} below
 * @param {(x: number) => string} across @param {(y: number) => string} down
 */
function band(trace, style, start, below, across, down) {
  /** @type {string[]} */
  const upper = [];
  /** @type {string[]} */
  const lower = [];
  for (let k = start; k < trace.x.length; k += 1) {
    const at = Number(trace.x[k]);
    const base = below.get(at) ?? 0;
    const top = base + (Number(trace.y[k]) || 0);
    below.set(at, top);
    lower.push(`${across(at)},${down(base)}`);
    upper.push(`${across(at)},${down(top)}`);
  }
  return svg("polygon", { points: [...upper, ...lower.reverse()].join(" "), fill: style.fillcolor ?? style.line?.color ?? "currentColor" });
}
