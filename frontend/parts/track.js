/** How a figure over steps is drawn as a track: its steps under those of the others, its names at the right, its legend in the head. */

/** @import { FigureJson, PlotTrace } from "../lib/types.d.ts" */

import { h, svg } from "../lib/dom.js";

/** The margins of a track: the same for all, so that a step is at the same place in each. styles/run.css has them too. */
const MARGIN = { l: 58, r: 112, t: 6, b: 18 };
/** Letters of a name beside a track, and pixels that a band's name needs. */
const MOST_LETTERS = 15;
const NAME_HEIGHT = 10;
/** The colour of a band in the background: it has a share of opacity behind it. */
const FADED = /^#[0-9a-f]{8}$/i;
/** Rows whose names all fit. */
const MOST_ROWS = 40;

/** @param {FigureJson} figure @param {[number, number] | null} frame first and last step @param {number} height of the plot, in pixels @returns {FigureJson} */
export function trackOf(figure, frame, height) {
  const { layout } = figure;
  const range = frame ? { range: [...frame], autorange: false } : {};
  const several = Object.keys(layout).filter((name) => /^yaxis\d*$/.test(name) && layout[name].visible !== false).length > 1;
  /** @type {Record<string, any>} */
  const axes = {};
  for (const [name, axis] of Object.entries(layout)) {
    if (/^xaxis\d*$/.test(name)) axes[name] = { ...axis, ...range, title: undefined, automargin: false };
    const names = axis?.type === "category" && axis.categoryarray?.length <= MOST_ROWS ? { tickmode: "array", tickvals: axis.categoryarray, tickfont: { size: axis.categoryarray.length > 5 ? 9 : 11 } } : {};
    if (/^yaxis\d*$/.test(name)) axes[name] = { ...axis, ...names, automargin: false, title: several ? axis.title : undefined };
  }
  return {
    data: figure.data.map(dressed),
    layout: { ...layout, ...axes, meta: { ...layout.meta, track: true }, margin: MARGIN, showlegend: false, annotations: [...(layout.annotations ?? []), ...bandNames(figure.data, height)] },
  };
}

/** @param {PlotTrace} trace @returns {PlotTrace} */
function dressed(trace) {
  if (trace.colorbar) return { ...trace, colorbar: { ...trace.colorbar, title: undefined } };
  if (typeof trace.mode === "string" && trace.mode.includes("text") && Array.isArray(trace.text)) {
    return { ...trace, text: trace.text.map((/** @type {unknown} */ words) => brief(String(words ?? ""))) };
  }
  return trace;
}

/** What fits beside a track: "python code" of "topic python code"; where the value is a number, the label's name stays. @param {string} words */
function brief(words) {
  const value = words.slice(words.indexOf(" ") + 1);
  const told = /^[\d.]+…?$/.test(value) ? words : value;
  return told.length > MOST_LETTERS ? `${told.slice(0, MOST_LETTERS - 1)}…` : told;
}

/** The names of stacked bands, at their right ends; where there is no room, those of the wider bands. @param {PlotTrace[]} data @param {number} height */
function bandNames(data, height) {
  const bands = data.filter((trace) => trace.stackgroup && trace.x?.length);
  if (!bands.length) return [];
  const last = Math.max(...bands.map((band) => Number(band.x[band.x.length - 1])));
  let below = 0;
  const named = bands.flatMap((band) => {
    const share = Number(band.x[band.x.length - 1]) === last ? Number(band.y[band.y.length - 1]) || 0 : 0;
    below += share;
    return share > 0 ? [{ band, share, middle: below - share / 2 }] : [];
  });
  const room = NAME_HEIGHT / Math.max(40, height - 45);
  /** @type {typeof named} */
  const kept = [];
  for (const one of named.sort((a, b) => b.share - a.share)) if (kept.every((other) => Math.abs(other.middle - one.middle) >= room)) kept.push(one);
  return kept.map(({ band, middle }) => ({ x: last, y: middle, xref: "x", yref: "y", text: band.name, showarrow: false, xanchor: "left", xshift: 5, opacity: FADED.test(String(band.line?.color)) ? 0.4 : 1, font: { size: 10 } }));
}

/** The legend of a figure's curves (and marks), as small signs with words. @param {FigureJson} figure @param {boolean} marks */
export function keys(figure, marks) {
  const told = figure.data.filter((trace) => trace.name && (trace.name !== "held out" || trace.x?.length) && trace.showlegend !== false && (marks || trace.meta?.role !== "marks"));
  return h("span", { class: "track-keys" }, told.map((trace) => h("span", { class: "track-key" }, sign(trace), trace.name)));
}

/** @type {Record<string, string>} */
const DASHES = { dot: "2 2", dash: "4 2" };
/** Paths of plotly's symbols in a square of 12. @type {Record<string, string>} */
const SHAPES = {
  "triangle-up": "M6 1.5 11 10.5H1z", "triangle-down": "M6 10.5 11 1.5H1z", circle: "M6 1.5a4.5 4.5 0 1 0 .01 0z", x: "M2 4 4 2 6 4 8 2 10 4 8 6 10 8 8 10 6 8 4 10 2 8 4 6z",
  star: "M6 .8 7.6 4.3 11.4 4.7 8.5 7.2 9.4 11 6 9 2.6 11 3.5 7.2.6 4.7 4.4 4.3z", diamond: "M6 .8 11.2 6 6 11.2.8 6z", "square-open": "M2 2h8v8H2z",
};

/** @param {PlotTrace} trace */
function sign(trace) {
  const symbol = trace.meta?.role === "marks" ? String(trace.marker?.symbol) : "";
  const drawn = svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" });
  const colour = trace.marker?.color ?? trace.line?.color ?? "currentColor";
  const open = symbol.endsWith("-open");
  if (symbol) drawn.append(svg("path", { d: SHAPES[symbol] ?? SHAPES.circle, fill: open ? "none" : colour, stroke: open ? colour : "none" }));
  else drawn.append(svg("path", { d: "M0 6H12", stroke: trace.line?.color ?? colour, "stroke-width": Math.min(3, Number(trace.line?.width ?? 2)), "stroke-dasharray": DASHES[trace.line?.dash] ?? "none", fill: "none" }));
  return drawn;
}
