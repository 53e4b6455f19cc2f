/** What links the views of Inspect: hover, selection and lasso go from each to all others. */

/** @import { Session } from "../lib/session.js" */
/** @import { MoeInspect } from "../views/inspect.js" */

import { api } from "../lib/api.js";
import { fail } from "../lib/toast.js";
import { fill } from "../lib/dom.js";
import { stepButtons } from "./steps.js";
import { pickedLoad } from "./picked-load.js";

const MOST_RINGS = 300;
const MOST_IN_LEGEND = 10;

export class Links {
  ears = new AbortController();
  hitsOf = "";
  turn = 0;

  /** @param {Session} session @param {MoeInspect} view */
  constructor(session, view) {
    this.session = session;
    this.view = view;
    const { signal } = this.ears;
    session.addEventListener("change", () => this.refresh().catch(fail), { signal });
    session.addEventListener("hover", (event) => this.hover(/** @type {CustomEvent} */ (event).detail), { signal });
    session.addEventListener("hits", () => view.map.ring("hit", session.hits.slice(0, MOST_RINGS)), { signal });
    const listen = (/** @type {HTMLElement} */ from, /** @type {string} */ name, /** @type {(detail: any) => void} */ run) =>
      from.addEventListener(name, (event) => run(/** @type {CustomEvent} */ (event).detail), { signal });
    listen(view.map, "hover", ({ token }) => session.hover(token, view.map));
    listen(view.map, "token", ({ token }) => session.select({ token }));
    listen(view.map, "lasso", ({ tokens }) => session.pick(tokens));
    for (const figure of [view.heat, view.labels]) {
      listen(figure, "pick", ({ expert, layer }) => {
        if (!Number.isInteger(expert)) return;
        const same = expert === session.expert && (layer === undefined || layer === session.layer);
        session.select({ layer: layer ?? session.layer, expert: same ? null : expert });
      });
    }
    /** Settles when the first picture is complete. */
    this.first = this.refresh().catch(fail);
  }

  close() { this.ears.abort(); }

  /** @param {{ token: number | null, from: object }} detail */
  hover({ token }) {
    this.view.map.ring("hover", token === null ? [] : [token]);
  }

  async refresh() {
    const { session, view } = this;
    const { layer, expert, token, color, label, method, trace, picked } = session;
    const figures = [
      view.map.show({ owner: "traces", of: trace.id, name: "token_map", options: { layer, color, method: method === "pca" ? null : method } }, "", (figure) => {
        if (color === "expert" && figure.data.length > MOST_IN_LEGEND) figure.layout.showlegend = false; // the list of experts is the legend
      }),
      view.heat.show({ owner: "traces", of: trace.id, name: "layer_expert_load", options: {} }, picked ? session.pickedText : "",
        picked ? async (figure) => pickedLoad(figure, await session.pickedFacts()) : null),
    ];
    if (label) figures.push(view.labels.show({ owner: "traces", of: trace.id, name: "label_expert", options: { layer, label } }));
    view.map.ring("selected", token === null ? [] : [token]);
    view.heat.outline(expert === null ? [{ x: null, y: `L${layer}`, kind: "row" }] : [{ x: `E${expert}`, y: `L${layer}`, kind: "selected" }]);
    view.labels.outline(expert === null ? [] : [{ x: `E${expert}`, y: null, kind: "column" }]);
    this.legend();
    const first = picked && session.pickedText !== this.pickedText ? Math.min(...picked) : null;
    this.pickedText = session.pickedText;
    if (first !== null) view.text.reveal(first).catch(fail);
    if (token !== null && token !== this.revealed) view.text.reveal(token).catch(fail);
    this.revealed = token;
    this.search().catch(fail);
    const turn = ++this.turn;
    const focused = await this.focused();
    if (turn === this.turn) view.map.focusTokens(focused, expert, expert === null ? null : session.shownColour(expert));
    if (expert !== null && (expert !== this.expert || layer !== this.layer) && token === null) view.text.showSome(expert).catch(fail);
    this.expert = expert;
    this.layer = layer;
    await Promise.all(figures);
  }

  /** @type {number | null} */
  revealed = null;
  pickedText = "";
  /** @type {number | null} */
  expert = null;
  layer = -1;

  /** The tokens of the map that stay bright: those of the expert, those of the lasso, or those of both. @returns {Promise<Set<number> | null>} */
  async focused() {
    const { expert, picked, layer, trace } = this.session;
    if (expert === null) return picked;
    const { first, other } = await api.expertTokens(trace.id, layer, expert);
    const tokens = [...first, ...other];
    return new Set(picked ? tokens.filter((token) => picked.has(token)) : tokens);
  }

  async search() {
    const { session } = this;
    const { query, trace } = session;
    if (query === this.hitsOf) return;
    this.hitsOf = query;
    if (!query) { session.setHits([], 0); return; }
    const { matches, total } = await api.search(trace.id, query, 2000);
    if (query === this.hitsOf) session.setHits(matches, total);
  }

  /** Say above the text what its colours mean now. */
  legend() {
    const { color, expert, layer } = this.session;
    const words = color === "expert" ? `coloured by the first-choice expert at layer ${layer}` : color === "confidence" ? `the stronger, the larger the first expert's gate at layer ${layer}` : `coloured by ${color}`;
    const place = this.view.querySelector(".legend-words");
    if (place) place.textContent = expert === null ? words : `E${expert} first: filled; also: ${this.session.trace.kind === "patches" ? "outlined" : "underlined"}`;
    this.view.map.legend.textContent = expert === null ? "" : color === "expert" ? `Bright: sent to E${expert}; in its colour where it is the first choice.` : `Bright: sent to E${expert}.`;
    const steps = this.view.querySelector(".text-steps");
    if (steps) fill(steps, stepButtons(this.session, this.view.text));
  }
}
