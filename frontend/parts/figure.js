/** `<moe-figure>`: any figure of the server, linked to the rest of the page by what its `meta` says of its elements. */

/** @import { FigureJson, GraphDiv, Job, Role } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, svg, tip } from "../lib/dom.js";
import { duration } from "../lib/format.js";
import { jobs } from "../lib/jobs.js";
import * as plot from "../lib/plot.js";
import { theme } from "../lib/theme.js";

/** @typedef {{ owner: "traces" | "runs" | "sweeps", of: string, name: string, options: Record<string, string | number | null> }} What */
/** @typedef {{ x: string | null, y: string | null, kind: "selected" | "column" | "row" }} Outline */

/**
 * Events: `pick` {expert, layer?, label?, value?}, `token` {token}, `hover` {token | null}, `lasso` {tokens}, `drawn`.
 */
export class MoeFigure extends HTMLElement {
  constructor() {
    super();
    /** @type {What | null} */
    this.what = null;
    /** @type {FigureJson | null} */
    this.figure = null;
    /** @type {GraphDiv | null} */
    this.plot = null;
    /** @type {Map<number, { x: number, y: number, trace: number, point: number }>} */
    this.places = new Map();
    /** @type {Record<string, number[]>} */
    this.marks = {};
    /** @type {Outline[]} */
    this.outlines = [];
    /** @type {Set<number> | null} */
    this.focused = null;
    this.turn = 0;
    this.canvas = h("div", { class: "figure-plot" });
    this.overlay = svg("svg", { class: "figure-overlay", "aria-hidden": "true" });
    this.message = h("div", { class: "figure-message", role: "status" });
    this.heading = h("h2");
    this.help = h("span");
    this.note = h("p", { class: "figure-note", hidden: true });
    this.legend = h("p", { class: "figure-legend" });
    this.caption = h("p", { class: "figure-caption", tabIndex: 0 });
    this.tools = h("span", { class: "figure-tools" });
    this.sizes = new ResizeObserver(() => this.fit());
    this.themed = () => { this.redraw(); };
  }

  connectedCallback() {
    if (!this.firstChild) {
      this.setAttribute("role", "group");
      this.append(
        h("header", null, this.heading, this.help, this.tools),
        h("div", { class: "figure-body" }, this.canvas, this.overlay, this.message), this.note, this.legend, h("div", { class: "figure-foot" }, this.caption));
    }
    this.sizes.observe(this.canvas);
    theme.addEventListener("change", this.themed);
  }

  disconnectedCallback() {
    this.turn += 1;
    this.sizes.disconnect();
    theme.removeEventListener("change", this.themed);
    plot.purge(this.canvas);
    this.plot = null;
    this.what = null;
    this.bound = false;
  }

  /**
   * Show a figure; what is drawn stays until the next one is there. `change` alters the page's copy of it, `key` says how.
   * @param {What} what @param {string} [key] @param {((figure: FigureJson) => void | Promise<void>) | null} [change]
   */
  async show(what, key = "", change = null) {
    if (this.figure && this.key === key && JSON.stringify(what) === JSON.stringify(this.what)) return;
    this.what = what;
    this.key = key;
    this.change = change;
    const turn = ++this.turn;
    this.classList.add("busy");
    try {
      let answer = await api.figure(what.owner, what.of, what.name, what.options);
      if ("job" in answer) answer = await this.await(answer.job, what, turn);
      if (turn !== this.turn) return;
      const figure = plot.copy(answer);
      await change?.(figure);
      if (turn !== this.turn) return;
      this.figure = figure;
      this.arrived(figure);
      await this.redraw();
    } catch (error) {
      if (turn !== this.turn || (error instanceof DOMException && error.name === "AbortError")) return;
      this.say(h("p", null, error instanceof Error ? error.message : String(error)),
        h("button", { type: "button", onclick: () => { this.what = null; this.show(what, key, change); } }, "Try again"));
    } finally {
      if (turn === this.turn) this.classList.remove("busy");
    }
  }

  /** @param {string} job @param {What} what @param {number} turn @returns {Promise<FigureJson>} */
  async await(job, what, turn) {
    const bar = h("progress", { max: 1 });
    const words = h("p", null, "Computing the projection…");
    this.say(words, bar, h("button", { type: "button", onclick: () => api.cancelJob(job).catch(() => undefined) }, "Cancel"));
    const done = await jobs.wait(job, (/** @type {Job} */ now) => {
      if (turn !== this.turn) return;
      const left = duration(now.seconds_left);
      words.textContent = `${now.stage ?? "Waiting for its turn"}${left ? `, ${left} left` : ""}`;
      if (now.progress !== null) bar.value = now.progress;
    });
    if (done.status !== "done") throw new Error(done.error ?? `The projection was ${done.status}.`);
    const answer = await api.figure(what.owner, what.of, what.name, what.options);
    if ("job" in answer) throw new Error("The projection is not there although its job has ended.");
    return answer;
  }

  /** Draw a figure that is there already. @param {What} what @param {FigureJson} figure */
  put(what, figure) {
    this.what = what;
    this.figure = figure;
    return this.redraw();
  }

  /** A figure has come and is drawn next. @param {FigureJson} _figure */
  arrived(_figure) { /* nothing to add */ }

  /** The figure as it is drawn: the page's own touches on a copy. @param {FigureJson} figure @returns {FigureJson} */
  dressed(figure) { return figure; }

  /** @param {...(Node | null)} children */
  say(...children) {
    fill(this.message, ...children);
    this.message.hidden = children.every((child) => child === null);
  }

  async redraw() {
    const figure = this.figure;
    if (!figure) return;
    const { meta } = figure.layout;
    this.heading.textContent = meta.title;
    this.setAttribute("aria-label", meta.title);
    this.caption.textContent = meta.caption;
    fill(this.help, this.explain ? tip(this.explain) : null);
    this.note.textContent = meta.note ?? "";
    this.note.hidden = !meta.note;
    this.places = plot.tokenPlaces(figure);
    this.plot = await plot.draw(this.canvas, this.dressed(figure), this.drag);
    if (!this.bound) this.bind(this.plot);
    if (this.focused) plot.emphasise(this.plot, this.focused, this.shade);
    this.writeTools(meta.name === "token_map" && this.drag !== "pan");
    this.mark();
    const empty = meta.grow !== undefined && figure.data.every((trace) => !trace.x?.length);
    this.say(empty ? h("p", { class: "muted" }, this.waiting) : null);
    this.dispatchEvent(new CustomEvent("drawn"));
  }

  /** Help for the (i) beside the title. @type {string} */
  explain = "";
  key = "";
  /** @type {((figure: FigureJson) => void | Promise<void>) | null} */
  change = null;
  /** What a drag over the map does. */
  drag = "lasso";
  /** @type {{ expert: number, colour: string } | null} */
  shade = null;

  /** Buttons for what a drag does, and the way back. @param {boolean} wanted */
  writeTools(wanted) {
    if (!wanted || this.tools.firstChild) return;
    const modes = [["lasso", "Lasso", "Draw around points to select them"], ["select", "Box", "Draw a box around points to select them"], ["pan", "Move", "Drag moves the map; scrolling zooms"]];
    const press = () => this.tools.querySelectorAll("[aria-pressed]").forEach((button) => button.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (button).dataset.mode === this.drag)));
    fill(this.tools, h("span", { class: "segmented", role: "group", "aria-label": "What a drag does" }, modes.map(([mode, words, title]) => h("button", {
      type: "button", class: "small", "aria-pressed": "false", "data-mode": mode, title,
      onclick: () => { this.drag = mode; if (this.plot) plot.dragMode(this.plot, mode); press(); },
    }, words))), h("button", { type: "button", class: "small quiet", title: "Show all points (double-click in the map)", onclick: () => { if (this.plot) plot.resetView(this.plot); } }, "Reset"));
    press();
  }
  bound = false;

  /** @param {GraphDiv} graph */
  bind(graph) {
    this.bound = true;
    graph.on("plotly_hover", (event) => {
      const point = event.points[0];
      if (role(point) === "tokens") this.tell("hover", { token: Number(point.customdata) });
    });
    graph.on("plotly_unhover", () => this.tell("hover", { token: null }));
    graph.on("plotly_click", (event) => this.clicked(event.points[0]));
    graph.on("plotly_selected", (event) => {
      if (!event?.points) return;
      const tokens = event.points.filter((/** @type {any} */ p) => role(p) === "tokens").map((/** @type {any} */ p) => Number(p.customdata));
      if (tokens.length) this.tell("lasso", { tokens });
    });
    for (const name of ["plotly_relayout", "plotly_relayouting", "plotly_afterplot"]) graph.on(name, () => this.mark());
  }

  /** @param {any} point */
  clicked(point) {
    const meta = metaOf(point);
    const expert = (/** @type {unknown} */ name) => Number(/^E(\d+)$/.exec(String(name))?.[1] ?? NaN);
    if (meta.role === "tokens") this.tell("token", { token: Number(point.customdata) });
    else if (meta.role === "cells") this.tell("pick", { expert: expert(point.x), layer: Number(String(point.y).replace(/^L/, "")) });
    else if (meta.role === "label_cells") this.tell("pick", { expert: expert(point.x), label: meta.label, value: String(point.y) });
    else if (meta.role === "bars") this.tell("pick", { expert: expert(point.x) });
    else if (meta.role === "flow") this.tell("pick", { expert: expert(point.label) });
    else if (meta.role === "step_cells") this.tell("pick", { expert: expert(point.y), step: Number(point.x) });
    else if (meta.role === "marks") this.tell("step", { step: Number(point.x) });
    else if (meta.role === "curve" && Number.isInteger(meta.group?.expert)) this.tell("pick", { expert: meta.group.expert, step: Number(point.x) });
  }

  /** @param {string} name @param {object} detail */
  tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  /** Ring these tokens, one kind (`hover`, `selected`, `hit`) at a time. @param {string} kind @param {number[]} tokens */
  ring(kind, tokens) {
    this.marks[kind] = tokens;
    this.mark();
  }

  /** Outline cells or columns. @param {Outline[]} outlines */
  outline(outlines) {
    this.outlines = outlines;
    this.mark();
  }

  /**
   * Dim every point but these; the expert's own are drawn in `colour`.
   * @param {Set<number> | null} tokens @param {number | null} [expert] @param {string | null} [colour]
   */
  focusTokens(tokens, expert = null, colour = null) {
    if (tokens === null && this.focused === null) return;
    const shade = expert === null || colour === null ? null : { expert, colour };
    this.focused = tokens;
    this.shade = shade;
    if (this.plot) {
      plot.emphasise(this.plot, tokens, shade);
      if (tokens === null) plot.clearLasso(this.plot);
    }
  }

  /** Place rings and outlines over the drawing: nothing of the figure itself is drawn again. */
  mark() {
    const graph = this.plot;
    if (!graph?._fullLayout?.xaxis) return;
    const shapes = [];
    for (const { x, y, kind } of this.outlines) {
      const box = plot.cell(graph, x, y);
      if (box) shapes.push(svg("rect", { class: `outline ${kind}`, x: box.left, y: box.top, width: box.width, height: box.height }));
    }
    for (const [kind, tokens] of Object.entries(this.marks)) {
      for (const token of tokens) {
        const place = this.places.get(token);
        const at = place && plot.pixel(graph, place.x, place.y);
        if (at) shapes.push(svg("circle", { class: `ring ${kind}`, cx: at.left, cy: at.top, r: kind === "hit" ? 5 : 8, "data-token": token }));
      }
    }
    this.overlay.replaceChildren(...shapes);
  }

  fit() { if (this.plot) plot.resize(this.plot); }

  /** Ask for the figure again; what was drawn stays until it is there. @returns {Promise<void>} */
  async refetch() {
    const { what, key, change } = this;
    if (!what) return;
    this.what = null;
    await this.show(what, key, change);
  }

  /** What stands where there is no data yet. */
  waiting = "Nothing yet: the curve appears with the first step.";
}

/** What a point says of itself; a node of a flow has its trace elsewhere than others. @param {any} point */
function metaOf(point) { return (point.data ?? point.trace ?? point.fullData)?.meta ?? {}; }

/** @param {any} point @returns {Role | undefined} */
function role(point) { return metaOf(point).role; }

customElements.define("moe-figure", MoeFigure);
