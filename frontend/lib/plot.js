/** The only module that calls Plotly: decodes and themes the server's figures, draws them, and says where a point is. */

/** @import { FigureJson, FigureMeta, GraphDiv, Grow, MoeEvent, PlotlyModule } from "./types.d.ts" */

import { colour } from "./theme.js";

/** @type {Promise<PlotlyModule> | null} */
let loading = null;

/** Plotly, fetched with the first figure so that the text need not wait for it. */
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/vendor/plotly.min.js";
    script.addEventListener("load", () => resolve(Plotly));
    script.addEventListener("error", () => { loading = null; reject(new Error("The plotting library did not load.")); });
    document.head.append(script);
  });
  return loading;
}

/** @type {boolean | null} */
let gl = null;

/** Whether WebGL works here; asked once. */
function hasWebgl() {
  if (gl === null) {
    const context = document.createElement("canvas").getContext("webgl");
    gl = context !== null;
    context?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return gl;
}

const ARRAYS = {
  i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array,
};

/** @param {any} value @returns {any} a fresh copy with every `{dtype, bdata}` as a plain (or nested) array */
function decoded(value) {
  if (Array.isArray(value)) return value.map(decoded);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.bdata === "string" && typeof value.dtype === "string") {
    const bytes = Uint8Array.from(atob(value.bdata), (character) => character.charCodeAt(0));
    const flat = Array.from(new ARRAYS[/** @type {keyof typeof ARRAYS} */ (value.dtype)](bytes.buffer));
    const shape = value.shape === undefined ? [flat.length] : String(value.shape).split(",").map(Number);
    return shape.length < 2 ? flat : rows(flat, shape[0], shape[1]);
  }
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, decoded(inner)]));
}

/** @param {number[]} flat @param {number} count @param {number} width */
function rows(flat, count, width) {
  return Array.from({ length: count }, (_, row) => flat.slice(row * width, (row + 1) * width));
}

/** The page's own copy of a figure: fresh arrays, points by WebGL only where it works. @param {FigureJson} figure @returns {FigureJson} */
export function copy(figure) {
  const own = decoded(figure);
  for (const trace of own.data) {
    if (trace.type === "scattergl" && !hasWebgl()) trace.type = "scatter";
    if (trace.meta?.role === "tokens") {
      trace.unselected ??= { marker: { opacity: 0.06 } };
      trace.selected ??= { marker: { opacity: 0.95 } };
    }
  }
  return own;
}

/** Room that a category's name needs below a column, in pixels. */
const NAME_WIDTH = 30;

/** @param {Record<string, any>} layout @param {FigureMeta} meta @param {string} drag @param {number} width of the element, in pixels */
function themed(layout, meta, drag, width) {
  const ink = colour("--ink");
  const muted = colour("--muted");
  const line = colour("--line");
  const points = meta.name === "token_map";
  const cells = !points && !meta.grow && meta.name !== "race";
  const family = getComputedStyle(document.body).fontFamily;
  /** @type {Record<string, any>} */
  const out = {
    ...layout,
    template: undefined,
    title: undefined,
    width: undefined,
    height: undefined,
    autosize: true,
    uirevision: [meta.name, meta.layer, layout.xaxis?.title?.text, layout.yaxis?.title?.text].join(" "),
    showlegend: layout.showlegend,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { ...layout.font, family, size: 12, color: ink },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: line, font: { color: ink, size: 12, family }, align: "left", namelength: -1 },
    legend: { ...layout.legend, bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 11 } },
    dragmode: points ? drag : cells || meta.track ? false : "zoom",
    newselection: { line: { color: colour("--accent"), width: 1.5 } },
    activeselection: { fillcolor: "rgba(0,0,0,0)", opacity: 1 },
    margin: { l: 8, r: 8, t: 8, b: 8, ...layout.margin },
  };
  for (const [name, axis] of Object.entries(layout)) {
    if (!/^[xy]axis\d*$/.test(name)) continue;
    out[name] = {
      ...axis, gridcolor: line, zerolinecolor: line, linecolor: line, ticks: "", automargin: true,
      tickfont: { size: 11, ...axis.tickfont, color: muted }, ...(axis.title ? { title: { ...axis.title, font: { color: muted, size: 11 } } } : {}), fixedrange: cells || meta.track || axis.fixedrange,
    };
    const names = axis.type === "category" && name.startsWith("x") ? axis.tickvals : null;
    const step = Math.ceil(((names?.length ?? 0) * NAME_WIDTH) / Math.max(60, width - 130));
    const fits = (/** @type {any} */ _, /** @type {number} */ i) => i % step === 0;
    if (names && width && step > 1) out[name] = { ...out[name], tickvals: names.filter(fits), ticktext: axis.ticktext?.filter(fits) };
  }
  return out;
}

const CONFIG = { displaylogo: false, responsive: false, displayModeBar: false };

/**
 * Draw, or draw again with the theme's colours; `drag` is what a drag over points does.
 * @param {HTMLElement} element @param {FigureJson} figure @param {string} drag @returns {Promise<GraphDiv>}
 */
export async function draw(element, figure, drag) {
  const Plots = await plotly();
  const meta = figure.layout.meta;
  const points = meta.name === "token_map";
  const config = { ...CONFIG, scrollZoom: points };
  const bar = colour("--muted");
  const quiet = (/** @type {any} */ owner) => (owner?.colorbar ? { ...owner, colorbar: { ...owner.colorbar, title: { ...owner.colorbar.title, font: { color: bar, size: 11 } }, tickfont: { color: bar, size: 11 } } } : { ...owner });
  const data = figure.data.map((trace) => ({ ...quiet(trace), ...(trace.marker ? { marker: quiet(trace.marker) } : {}) }));
  return Plots.react(element, data, themed(figure.layout, meta, drag, element.clientWidth), config);
}

/** @param {HTMLElement} element */
export function purge(element) {
  if (globalThis.Plotly) Plotly.purge(element);
}

/** Fit the figure to its element. @param {GraphDiv} plot */
export function resize(plot) {
  if (plot.isConnected && plot.clientWidth > 0) Plotly.Plots.resize(plot).catch(() => undefined);
}

/** Forget what was lassoed. @param {GraphDiv} plot */
export function clearLasso(plot) {
  if (plot.layout.selections?.length) Plotly.relayout(plot, { selections: [] });
}

/**
 * Every token of the map: where it lies, and its trace and place in it.
 * @param {FigureJson} figure @returns {Map<number, { x: number, y: number, trace: number, point: number }>}
 */
export function tokenPlaces(figure) {
  const places = new Map();
  figure.data.forEach((trace, t) => {
    if (trace.meta?.role !== "tokens") return;
    trace.customdata.forEach((/** @type {number} */ token, /** @type {number} */ point) => {
      places.set(Number(token), { x: trace.x[point], y: trace.y[point], trace: t, point });
    });
  });
  return places;
}

/**
 * Dim every point but these; null shows all alike. `shade` is the colour of one expert's points.
 * @param {GraphDiv} plot @param {Set<number> | null} tokens @param {{ expert: number, colour: string } | null} shade
 */
export function emphasise(plot, tokens, shade) {
  /** @type {number[]} */
  const traces = [];
  /** @type {(number[] | null)[]} */
  const chosen = [];
  plot.data.forEach((trace, t) => {
    if (trace.meta?.role !== "tokens") return;
    traces.push(t);
    chosen.push(tokens && trace.customdata.flatMap((/** @type {number} */ token, /** @type {number} */ i) => (tokens.has(token) ? [i] : [])));
  });
  const own = shade?.colour.startsWith("var(") ? colour(shade.colour.slice(4, -1)) : shade?.colour;
  const colours = traces.map((t) => (shade && plot.data[t].meta?.group?.expert === shade.expert ? own : null));
  if (traces.length) Plotly.restyle(plot, { selectedpoints: chosen, "selected.marker.color": colours }, traces).catch(() => undefined);
}

/** What a drag does, `lasso`, `select` (a box) or `pan`; and back to where everything is in sight. @param {GraphDiv} plot @param {string} mode */
export function dragMode(plot, mode) { Plotly.relayout(plot, { dragmode: mode }); }

/** @param {GraphDiv} plot */
export function resetView(plot) { Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true }); }

/** Pixels from the plot's corner, or null outside of what is drawn. @param {GraphDiv} plot @param {number} x @param {number} y */
export function pixel(plot, x, y) {
  const { xaxis, yaxis } = plot._fullLayout;
  const left = xaxis.l2p(x);
  const top = yaxis.l2p(y);
  if (!(left >= 0 && left <= xaxis._length && top >= 0 && top <= yaxis._length)) return null;
  return { left: left + xaxis._offset, top: top + yaxis._offset };
}

/**
 * The step and the height at a place of the first panel, in pixels from the plot's corner, and the name of the row there;
 * null above and below it. @param {GraphDiv} plot @param {number} left @param {number | null} top null: any
 */
export function place(plot, left, top) {
  const { xaxis, yaxis } = plot._fullLayout;
  const x = xaxis.p2l(Math.max(0, Math.min(xaxis._length, left - xaxis._offset)));
  if (top === null || !yaxis) return { x, y: null, name: null };
  const down = top - yaxis._offset;
  if (down < 0 || down > yaxis._length) return null;
  const y = yaxis.p2l(down);
  const at = yaxis.tickvals?.indexOf(Math.round(y)) ?? -1;
  return { x, y, name: yaxis._categories?.length ? yaxis._categories[Math.round(y)] ?? null : at < 0 ? null : String(yaxis.ticktext?.[at] ?? "") };
}

/**
 * The rectangle of a cell of a heat-map; of a whole column where y is null, of a whole row where x is; null where there is none.
 * @param {GraphDiv} plot @param {string | null} x @param {string | null} y
 */
export function cell(plot, x, y) {
  const { xaxis, yaxis } = plot._fullLayout;
  const across = span(xaxis, x);
  const down = span(yaxis, y);
  return across && down && { left: xaxis._offset + across[0], top: yaxis._offset + down[0], width: across[1] - across[0], height: down[1] - down[0] };
}

/** @param {GraphDiv["_fullLayout"]["xaxis"]} axis @param {string | null} category */
function span(axis, category) {
  if (category === null) return [0, axis._length];
  const at = (axis._categories ?? []).indexOf(category);
  return at < 0 ? null : [axis.l2p(at - 0.5), axis.l2p(at + 0.5)].sort((a, b) => a - b);
}

/** @param {MoeEvent} event @param {string} path */
function read(event, path) {
  /** @type {any} */
  let value = { step: event.step, ...event.payload };
  for (const part of path.split(".")) value = value?.[part];
  return value;
}

/**
 * Append an event to the curves and columns that grow with it, as fresh arrays. Tells whether anything grew.
 * @param {FigureJson} figure @param {MoeEvent} event
 */
export function grow(figure, event) {
  let grew = false;
  for (const rule of /** @type {Grow[]} */ (figure.layout.meta.grow ?? [])) {
    if (rule.kind !== event.kind) continue;
    const trace = figure.data[rule.trace];
    const x = read(event, rule.x);
    const y = read(event, rule.y);
    if (!trace || x === undefined || y === undefined) continue;
    const known = trace.x ?? [];
    if (known.length && Number(known[known.length - 1]) >= x) continue;
    const before = trace.y?.at(-1);
    const keep = rule.smooth && Number.isFinite(before) ? rule.smooth ** (x - Number(known[known.length - 1])) : 0;
    trace.x = [...known, x];
    trace.y = [...(trace.y ?? []), keep ? keep * before + (1 - keep) * y : y];
    grew = true;
  }
  return grew;
}
