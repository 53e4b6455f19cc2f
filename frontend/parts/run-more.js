/** `<moe-run-more>`: what stands below the tracks: cluster tightness and routing divergence over the snapshots, objectives; and the token flow. */

/** @import { MoeEvent, RunRow } from "../lib/types.d.ts" */
/** @import { Look } from "./run-tracks.js" */

import { fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { MoeLive } from "./live-figure.js";

/** @type {Record<string, string>} */
const HELP = {
  tightness: "Whether the tokens that an expert gets lie close together in what the router sees, at every snapshot. Rising means that experts specialise on regions.",
  divergence: "How differently the values of a label are routed, at every snapshot. 0: all alike; the null is the label shuffled.",
  objectives: "The auxiliary losses, each times its coefficient, summed over the layers.",
  token_flow: "The same probe tokens at two snapshots: left the expert that had them, right the one that has them now. A ribbon from a parent to its child is what the child took over.",
};

export class MoeRunMore extends HTMLElement {
  /** By the figure's name. @type {Map<string, MoeLive>} */
  figures = new Map();
  flow = new MoeLive();
  flowPanel = h("section", { class: "panel area-flow", hidden: true }, this.flow);
  /** @type {RunRow | null} */
  run = null;

  /** @param {RunRow} run @param {boolean} grows */
  open(run, grows) {
    this.run = run;
    this.figures.clear();
    const { objectives } = /** @type {Record<string, any>} */ (run.config);
    const told = Object.keys(objectives ?? {}).length > 0 || grows;
    const names = ["tightness", "divergence", ...(told ? ["objectives"] : [])];
    fill(this, names.map((name) => {
      const figure = new MoeLive();
      figure.explain = HELP[name];
      this.figures.set(name, figure);
      for (const kind of ["pick", "step"]) figure.addEventListener(kind, (event) => this.dispatchEvent(new CustomEvent(kind, { detail: /** @type {CustomEvent} */ (event).detail })));
      return h("section", { class: `panel area-${name}`, "data-figure": name, hidden: name !== "objectives" }, figure);
    }));
    this.flow.explain = HELP.token_flow;
    this.flow.addEventListener("pick", (event) => this.dispatchEvent(new CustomEvent("pick", { detail: /** @type {CustomEvent} */ (event).detail })));
  }

  /** @param {Look} look @param {number | null} snapshot the one that shows the step @param {number[]} stops steps of all snapshots */
  look({ layer, expert, step }, snapshot, stops) {
    const { run } = this;
    if (!run) return Promise.resolve();
    const what = (/** @type {string} */ name, /** @type {Record<string, number | null>} */ options) => ({ owner: /** @type {const} */ ("runs"), of: run.id, name, options });
    const shows = [];
    for (const [name, figure] of this.figures) {
      const section = /** @type {HTMLElement} */ (figure.closest("section"));
      const over = name !== "objectives";
      section.hidden = over && stops.length < 2;
      if (section.hidden) continue;
      figure.look({ expert: over ? expert : null });
      figure.point(step);
      shows.push(figure.show(what(name, over ? { layer } : {})));
    }
    const at = snapshot === null ? -1 : stops.indexOf(snapshot);
    const [before, after] = at > 0 ? [stops[at - 1], stops[at]] : [stops[0], stops[1]];
    this.flowPanel.hidden = stops.length < 2;
    if (!this.flowPanel.hidden) {
      this.flow.look({ expert });
      this.flow.legend.textContent = `Step ${number(before)} on the left, step ${number(after)} on the right.`;
      shows.push(this.flow.show(what("token_flow", { layer, before, step: after })));
    }
    return Promise.all(shows);
  }

  /** @param {MoeEvent} event */
  hear(event) { for (const figure of this.figures.values()) figure.grow(event); }

  again() { for (const figure of this.figures.values()) figure.renew(); }
}

customElements.define("moe-run-more", MoeRunMore);
