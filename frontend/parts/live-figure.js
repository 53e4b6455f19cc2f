/** `<moe-live>`: a figure of a run: it grows with events, is asked for again where it cannot, and shows one expert and one step. */

/** @import { FigureJson, MoeEvent, PlotTrace } from "../lib/types.d.ts" */

import { fill, svg } from "../lib/dom.js";
import { frames } from "../lib/frames.js";
import * as plot from "../lib/plot.js";
import { MoeFigure } from "./figure.js";
import { lengths, tail } from "./tail.js";
import { listen } from "./track-pointer.js";
import { keys, trackOf } from "./track.js";

/** Least time between two requests for one figure, ms; a slow answer makes it so many times as long as it took, up to a limit. */
const PACE = 600;
const PATIENCE = 2;
const MOST_WAIT = 3000;
/** Least time between two drawings of a figure that only grew, ms: what came meanwhile is sketched over it. */
const GROWN = 1000;
export class MoeLive extends MoeFigure {
  /** Whether its steps lie under those of the tracks above and below. */
  track = false;
  /** First and last step that a track shows. @type {[number, number] | null} */
  frame = null;
  /** @type {number | null} */
  expert = null;
  /** The step the page looks at; what came after it is veiled. @type {number | null} */
  cursor = null;
  /** Events that the next figure to arrive may lack. @type {MoeEvent[]} */
  recent = [];
  asked = 0;
  took = 0;
  timer = 0;
  connectedCallback() {
    super.connectedCallback();
    if (this.track && !this.classList.contains("as-track")) listen(this);
    this.classList.toggle("as-track", this.track);
  }

  disconnectedCallback() {
    clearTimeout(this.timer);
    this.timer = 0;
    cancelAnimationFrame(this.sketch);
    this.sketch = 0;
    frames.forget(this);
    super.disconnectedCallback();
  }

  /** Whether it is on the screen, or nearly. */
  seen() {
    if (document.hidden || !this.isConnected || this.hidden) return false;
    const { top, bottom, height } = this.getBoundingClientRect();
    return height > 0 && bottom > -150 && top < innerHeight + 150;
  }

  /** Let an event of the run into the figure. @param {MoeEvent} event */
  grow(event) {
    this.recent.push(event);
    if (this.recent.length > 1500) this.recent.splice(0, 500);
    if (!this.figure) return;
    const { meta } = this.figure.layout;
    if (plot.grow(this.figure, event)) {
      if (!this.sketch) this.sketch = requestAnimationFrame(() => { this.sketch = 0; this.mark(); this.dispatchEvent(new Event("grew")); });
      this.touch(GROWN);
    } else if ((meta.again ?? []).includes(event.kind) || (meta.grow ?? []).some((rule) => rule.kind === event.kind)) this.renew();
  }

  /** The frame in which the newest points are sketched. */
  sketch = 0;
  /** Points that are drawn, by trace. @type {number[]} */
  drawnPoints = [];

  /** It has changed: draw it with one of the next frames. @param {number} [pace] least time since it was last drawn, ms */
  touch(pace = 0) { frames.ask(this, pace); }

  /** Ask for it again, but not at once for every event, and not while nobody looks. */
  renew() {
    if (this.flying) { this.again = true; return; }
    if (this.timer || !this.what) return;
    const wait = Math.max(0, this.asked + Math.max(PACE, Math.min(MOST_WAIT, PATIENCE * this.took)) - performance.now());
    this.timer = window.setTimeout(async () => {
      this.timer = 0;
      this.asked = performance.now();
      if (!this.seen()) { this.renew(); return; }
      this.flying = true;
      try { await this.refetch(); } finally { this.flying = false; }
      this.took = performance.now() - this.asked;
      if (this.again) { this.again = false; this.renew(); }
    }, wait);
  }

  /** Whether an answer is awaited, and whether something happened meanwhile that it may lack. */
  flying = false;
  again = false;

  /** The run went back a few steps: what was added since is forgotten. */
  anew() {
    this.recent = [];
    return this.refetch();
  }

  /** @param {FigureJson} figure */
  arrived(figure) { for (const event of this.recent) plot.grow(figure, event); }

  async redraw() {
    const drawn = this.figure ? lengths(this.figure) : [];
    this.drawing = true;
    try { await super.redraw(); } finally { this.drawing = false; }
    this.drawnPoints = drawn;
    this.mark();
  }

  drawing = false;

  /** @param {{ frame?: [number, number] | null, expert?: number | null }} how */
  look({ frame = this.frame, expert = this.expert }) {
    const moved = frame?.[0] !== this.frame?.[0] || frame?.[1] !== this.frame?.[1] || expert !== this.expert;
    this.frame = frame;
    this.expert = expert;
    if (moved && this.figure) this.touch();
  }

  /** @param {number | null} step */
  point(step) {
    if (step === this.cursor) return;
    this.cursor = step;
    this.mark();
  }

  /** @param {FigureJson} figure @returns {FigureJson} */
  dressed(figure) {
    const { expert } = this;
    const known = expert !== null && figure.data.some((trace) => trace.meta?.group?.expert === expert);
    const data = known ? figure.data.map((trace) => faded(trace, /** @type {number} */ (expert))) : figure.data;
    return this.track ? trackOf({ ...figure, data }, this.frame, this.canvas.clientHeight) : { data, layout: { ...figure.layout, showlegend: false } };
  }

  /** The legend stands in the head: that of the marks once, with the loss; experts have theirs above the tracks. */
  writeTools() {
    const name = this.figure?.layout.meta.name;
    fill(this.tools, this.figure && (!this.track || name === "loss") ? keys(this.figure, name === "loss") : null);
  }

  /** @param {any} point */
  clicked(point) {
    if (!this.track || point.data?.meta?.role === "marks") super.clicked(point);
  }

  mark() {
    super.mark();
    const { cursor, figure, plot: graph } = this;
    if (!graph?._fullLayout?.xaxis) return;
    if (figure && !this.drawing && this.drawnPoints.length) this.overlay.append(...tail(graph, figure, this.drawnPoints));
    if (cursor === null) return;
    const { xaxis } = graph._fullLayout;
    const at = xaxis._offset + Math.max(0, Math.min(xaxis._length, xaxis.l2p(cursor)));
    const bottom = graph.clientHeight - (graph._fullLayout._size?.b ?? 0);
    this.overlay.append(
      svg("rect", { class: "veil", x: at, y: 0, width: Math.max(0, xaxis._offset + xaxis._length - at), height: Math.max(0, bottom) }),
      svg("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: bottom }));
  }
}

/** A curve of another expert, in the background. @param {PlotTrace} trace @param {number} expert @returns {PlotTrace} */
function faded(trace, expert) {
  const own = trace.meta?.group?.expert;
  if (own === undefined || own === expert) return trace;
  return trace.stackgroup ? { ...trace, fillcolor: `${trace.fillcolor}38`, line: { ...trace.line, color: `${trace.line?.color}66` } } : { ...trace, opacity: 0.25 };
}

customElements.define("moe-live", MoeLive);
