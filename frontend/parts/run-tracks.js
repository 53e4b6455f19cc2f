/** `<moe-run-tracks>`: what happened, over the same steps: loss, load, drift, an expert's signals, lineage; one under the other. */

/** @import { MoeEvent, RunRow } from "../lib/types.d.ts" */

import { fill, h, tip } from "../lib/dom.js";
import { MoeLive } from "./live-figure.js";
import { MoeTransport } from "./transport.js";

/** What the page looks at. @typedef {{ layer: number | null, expert: number | null, step: number | null }} Look */

/** @type {Record<string, string>} */
const HELP = {
  loss: "Lower is better. A language model that guesses evenly over a vocabulary of V has ln V nats.",
  load_over_time: "How the layer's work is shared among its experts: each band is an expert, as wide as its share. A new band is a new expert; where it opens, it takes work from its parent.",
  drift: "How near each expert is to its detector's threshold. Where a mark stands, the detector fired. Click a cell to see the expert's signals as curves.",
  drift_signal: "The signals of the selected expert against their thresholds, one panel each.",
  lineage: "A line is an expert, from when it came alive until it died; a branch is a split. At the right stands what each responds to now.",
};

/** So many rows fit a track as it is; more make it higher, by so many pixels each. */
const FEW_ROWS = 8;
const ROW = 12;

/** Fires `pick` {expert, step?, layer?} and `step` {step, ms}. */
export class MoeRunTracks extends HTMLElement {
  transport = new MoeTransport();
  /** By the figure's name. @type {Map<string, MoeLive>} */
  tracks = new Map();
  /** @type {RunRow | null} */
  run = null;
  /** @type {Look} */
  now = { layer: null, expert: null, step: null };

  /** @param {RunRow} run @param {boolean} grows @param {boolean} watched whether a detector looks at its experts */
  open(run, grows, watched) {
    this.run = run;
    this.tracks.clear();
    const names = ["loss", "load_over_time", ...(watched ? ["drift", "drift_signal"] : []), ...(grows ? ["lineage"] : [])];
    this.classList.toggle("grows", grows);
    fill(this, this.transport, names.map((name) => this.track(name)));
  }

  /** @param {string} name */
  track(name) {
    const figure = new MoeLive();
    figure.track = true;
    figure.explain = HELP[name];
    if (name === "loss") figure.addEventListener("drawn", () => {
      const evaluated = figure.figure?.data.some((trace) => trace.name === "held out" && trace.x?.length);
      if (!evaluated || figure.explain !== HELP.loss) return;
      figure.explain = `${HELP.loss} The held-out curve tells whether it learns or memorises.`;
      fill(figure.help, tip(figure.explain));
    });
    this.tracks.set(name, figure);
    figure.addEventListener("drawn", () => {
      const { categoryarray, tickvals } = figure.figure?.layout.yaxis ?? {};
      const rows = name === "drift" ? categoryarray?.length : name === "lineage" ? tickvals?.length : 0;
      const section = figure.closest("section");
      if (section) section.style.minHeight = rows > FEW_ROWS ? `${ROW * rows + 90}px` : "";
    });
    for (const kind of ["pick", "step"]) figure.addEventListener(kind, (event) => this.dispatchEvent(new CustomEvent(kind, { detail: /** @type {CustomEvent} */ (event).detail })));
    return h("section", { class: `panel track area-${AREAS[name]}`, "data-track": name, hidden: name === "drift_signal" }, figure);
  }

  /** First step that the tracks show: a fork goes on from another run's checkpoint. */
  get begin() { return this.run?.fork?.step ?? 0; }

  /** Last step that the tracks show: while a run goes on the frame grows by halves, so that what is drawn does not creep. */
  get end() {
    const { step = 0, steps = 1, status = "" } = this.run ?? {};
    if (status === "finished" || status === "stopped" || status === "failed" || this.run?.orphan) return Math.max(1, step);
    return [1 / 8, 1 / 4, 1 / 2, 1].map((share) => Math.ceil(this.begin + share * (steps - this.begin))).find((frame) => frame >= step) ?? Math.max(1, steps);
  }

  /** Show a layer, an expert and a step. @param {Look} look @returns {Promise<unknown>} */
  look(look) {
    const { run } = this;
    if (!run) return Promise.resolve();
    this.now = look;
    const { layer, expert, step } = look;
    const shows = [];
    for (const [name, figure] of this.tracks) {
      figure.look({ frame: [this.begin, this.end], expert: name === "loss" || name === "drift_signal" ? null : expert });
      figure.point(step);
      if (name === "drift") figure.outline(expert === null ? [] : [{ x: null, y: `E${expert}`, kind: "selected" }]);
      if (name === "drift_signal") {
        const section = /** @type {HTMLElement} */ (figure.closest("section"));
        section.hidden = expert === null;
        if (expert === null) continue;
      }
      /** @type {Record<string, number | null>} */
      const options = name === "loss" ? {} : name === "drift_signal" ? { layer, expert } : { layer };
      shows.push(figure.show({ owner: "runs", of: run.id, name, options }));
    }
    return Promise.all(shows);
  }

  /** The run's row has changed. @param {RunRow} run */
  put(run) {
    this.run = run;
    for (const figure of this.tracks.values()) figure.look({ frame: [this.begin, this.end] });
  }

  /** @param {MoeEvent} event */
  hear(event) {
    const before = this.end;
    if (this.run && event.step > this.run.step) this.run.step = event.step;
    for (const figure of this.tracks.values()) figure.grow(event);
    if (this.end !== before) for (const figure of this.tracks.values()) figure.look({ frame: [this.begin, this.end] });
  }

  /** @param {boolean} back whether the run went back a few steps */
  again(back) { for (const figure of this.tracks.values()) { if (back) figure.anew(); else figure.renew(); } }

  /** The colour that the figures give each expert. @returns {Map<number, string>} */
  colours() {
    const colours = new Map();
    for (const name of ["load_over_time", "lineage"]) {
      for (const trace of this.tracks.get(name)?.figure?.data ?? []) {
        const expert = trace.meta?.group?.expert;
        const colour = trace.line?.color ?? trace.marker?.color;
        if (expert !== undefined && typeof colour === "string" && !colours.has(expert)) colours.set(expert, colour);
      }
    }
    return colours;
  }
}

/** @type {Record<string, string>} */
const AREAS = { loss: "loss", load_over_time: "load", drift: "drift", drift_signal: "signal", lineage: "lineage" };

customElements.define("moe-run-tracks", MoeRunTracks);
