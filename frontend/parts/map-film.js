/** `<moe-film>`: the token map at every snapshot of a run, with points that move from one to the next. */

/** @import { FigureJson } from "../lib/types.d.ts" */
/** @import { What } from "./figure.js" */

import { api } from "../lib/api.js";
import { h } from "../lib/dom.js";
import * as plot from "../lib/plot.js";
import { MoeFigure } from "./figure.js";

/** @typedef {{ x: number, y: number, colour: string, expert: number }} Point */

export class MoeFilm extends MoeFigure {
  /** Figures that were fetched, by what they are. @type {Map<string, Promise<FigureJson>>} */
  kept = new Map();
  /** What every snapshot of this series needs: points stay put while the axes do. @type {{ x: [number, number], y: [number, number] } | null} */
  bounds = null;
  series = "";
  sheet = h("canvas", { class: "film", "aria-hidden": "true" });
  drag = "pan";
  moving = 0;

  connectedCallback() {
    super.connectedCallback();
    this.canvas.after(this.sheet);
  }

  disconnectedCallback() {
    this.stop();
    this.kept.clear();
    super.disconnectedCallback();
  }

  /** The page's copy of one snapshot's map. @param {What} what @returns {Promise<FigureJson>} */
  fetched(what) {
    const { step: _, ...others } = what.options;
    const series = JSON.stringify([what.of, others]);
    if (series !== this.series) { this.series = series; this.kept.clear(); this.bounds = null; }
    const key = JSON.stringify(what);
    let answer = this.kept.get(key);
    if (!answer) {
      answer = this.ask(what).then((figure) => { this.widen(figure); return figure; });
      answer.catch(() => this.kept.delete(key));
      this.kept.set(key, answer);
    }
    return answer;
  }

  /** @param {What} what @returns {Promise<FigureJson>} */
  async ask(what) {
    let answer = await api.figure(what.owner, what.of, what.name, what.options);
    if ("job" in answer) answer = await this.await(answer.job, what, this.turn);
    return plot.copy(answer);
  }

  /** @param {FigureJson} figure */
  widen({ layout }) {
    const [x, y] = [layout.xaxis?.range, layout.yaxis?.range];
    if (!x || !y) return;
    const wide = (/** @type {[number, number]} */ old, /** @type {[number, number]} */ now) => /** @type {[number, number]} */ ([Math.min(old[0], now[0]), Math.max(old[1], now[1])]);
    this.bounds = this.bounds ? { x: wide(this.bounds.x, x), y: wide(this.bounds.y, y) } : { x, y };
  }

  /** Show one snapshot; from another of the same series its points move there in `ms`. @param {What} what @param {number} ms */
  async turnTo(what, ms) {
    const turn = ++this.turn;
    this.classList.add("busy");
    if (!this.figure) this.say(h("p", { class: "muted" }, "Placing points…"));
    try {
      const same = this.what !== null && this.series !== "" && this.figure !== null;
      const before = this.figure;
      const { series } = this;
      const figure = await this.fetched(what);
      if (turn !== this.turn) return;
      this.classList.remove("busy");
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      if (same && ms > 0 && !still && series === this.series && before && this.plot) await this.move(before, figure, ms, turn);
      if (turn !== this.turn) return;
      await this.put(what, figure);
      this.sheet.hidden = true;
      this.classList.remove("filming");
    } catch (error) {
      if (turn !== this.turn) return;
      this.say(h("p", null, error instanceof Error ? error.message : String(error)));
    } finally { if (turn === this.turn) this.classList.remove("busy"); }
  }

  stop() {
    cancelAnimationFrame(this.moving);
    this.moving = 0;
  }

  /** Move every point on a sheet over the plot, which is drawn again when they have arrived. @param {FigureJson} from @param {FigureJson} to @param {number} ms @param {number} turn @returns {Promise<void>} */
  move(from, to, ms, turn) {
    const [start, end] = [pointsOf(from), pointsOf(to)];
    if (!start.size || !end.size) return Promise.resolve();
    this.stop();
    this.sheet.hidden = false;
    const size = Number(to.data.find((trace) => trace.meta?.role === "tokens")?.marker?.size ?? 5);
    const began = performance.now();
    return new Promise((resolve) => {
      const tick = () => {
        if (turn !== this.turn || !this.isConnected) { resolve(); return; }
        const share = Math.min(1, (performance.now() - began) / ms);
        this.paint(start, end, share < 0.5 ? 4 * share ** 3 : 1 - (2 - 2 * share) ** 3 / 2, size / 2);
        this.classList.add("filming");
        if (share < 1) this.moving = requestAnimationFrame(tick);
        else resolve();
      };
      this.moving = requestAnimationFrame(tick);
    });
  }

  /** @param {Map<number, Point>} from @param {Map<number, Point>} to @param {number} share @param {number} radius */
  paint(from, to, share, radius) {
    const graph = this.plot;
    const pen = this.sheet.getContext("2d");
    if (!graph || !pen) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const dense = devicePixelRatio || 1;
    if (this.sheet.width !== Math.round(width * dense)) this.sheet.width = Math.round(width * dense);
    if (this.sheet.height !== Math.round(height * dense)) this.sheet.height = Math.round(height * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, width, height);
    const { shade } = this;
    for (const [token, b] of to) {
      const a = from.get(token) ?? b;
      const at = plot.pixel(graph, a.x + (b.x - a.x) * share, a.y + (b.y - a.y) * share);
      if (!at) continue;
      const now = share < 0.5 ? a : b;
      pen.globalAlpha = shade !== null && now.expert !== shade.expert ? 0.08 : 0.85;
      pen.fillStyle = now.colour;
      pen.beginPath();
      pen.arc(at.left, at.top, radius, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  /** @param {FigureJson} figure @returns {FigureJson} */
  dressed(figure) {
    const { bounds } = this;
    if (!bounds) return figure;
    const { layout } = figure;
    const experts = figure.data.every((trace) => trace.meta?.role !== "tokens" || trace.meta.group?.expert !== undefined);
    return { data: figure.data, layout: { ...layout, showlegend: !experts && layout.showlegend !== false, xaxis: { ...layout.xaxis, range: [...bounds.x], autorange: false }, yaxis: { ...layout.yaxis, range: [...bounds.y], autorange: false } } };
  }
}

/** Where every token is, in which colour, and whose it is. @param {FigureJson} figure @returns {Map<number, Point>} */
function pointsOf(figure) {
  const points = new Map();
  for (const trace of figure.data) {
    const { meta, marker } = trace;
    if (meta?.role !== "tokens" || typeof marker?.color !== "string") continue;
    const open = String(marker.symbol ?? "").endsWith("-open");
    for (let i = 0; i < trace.customdata.length; i += 1) {
      points.set(Number(trace.customdata[i]), { x: trace.x[i], y: trace.y[i], colour: open ? `${marker.color}66` : marker.color, expert: meta.experts?.[i] ?? -1 });
    }
  }
  return points;
}

customElements.define("moe-film", MoeFilm);
