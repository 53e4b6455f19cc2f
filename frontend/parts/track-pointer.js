/** The pointer on a track: a click selects the expert whose lane or band it is on, a drag moves the step that the page looks at. */

/** @import { GraphDiv, PlotTrace } from "../lib/types.d.ts" */
/** @import { MoeLive } from "./live-figure.js" */

import * as plot from "../lib/plot.js";

/** Pixels that the pointer may move within a click. */
const STILL = 4;

/** @param {MoeLive} figure */
export function listen(figure) {
  const { canvas } = figure;
  canvas.addEventListener("pointerdown", (down) => {
    const graph = figure.plot;
    if (down.button !== 0 || !graph?._fullLayout?.xaxis) return;
    const box = canvas.getBoundingClientRect();
    const start = plot.place(graph, down.clientX - box.left, down.clientY - box.top);
    if (!start) return;
    let moved = false;
    const move = (/** @type {PointerEvent} */ now) => {
      moved ||= Math.abs(now.clientX - down.clientX) > STILL;
      const at = moved ? plot.place(graph, now.clientX - box.left, null) : null;
      if (at) figure.tell("step", { step: Math.max(0, Math.round(at.x)), ms: 0 });
    };
    const up = (/** @type {PointerEvent} */ now) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      removeEventListener("pointercancel", up);
      if (moved || now.type === "pointercancel" || start.y === null) return;
      const expert = expertAt(graph, start.x, start.y, start.name);
      if (expert !== null) figure.tell("pick", { expert });
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
    addEventListener("pointercancel", up);
  });
}

/** Whose lane, row or band lies there. @param {GraphDiv} graph @param {number} x @param {number} y @param {string | null} name of the row @returns {number | null} */
function expertAt(graph, x, y, name) {
  const named = /^E(\d+)$/.exec(name ?? "");
  if (named) return Number(named[1]);
  let below = 0;
  for (const band of graph.data.filter((trace) => trace.stackgroup)) {
    below += Number(band.y[nearest(band, x)]) || 0;
    if (y <= below) return band.meta?.group?.expert ?? null;
  }
  return null;
}

/** @param {PlotTrace} trace @param {number} x */
function nearest(trace, x) {
  let best = 0;
  for (let i = 1; i < trace.x.length; i += 1) if (Math.abs(trace.x[i] - x) < Math.abs(trace.x[best] - x)) best = i;
  return best;
}
