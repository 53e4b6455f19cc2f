/** One open trace: what of it is selected (in the address), what is hovered (nowhere), and its tokens as they are needed. */

/** @import { DocumentRow, LabelInfo, LayerInfo, Picked, TokenWindow, TraceDetail } from "./types.d.ts" */

import { api } from "./api.js";
import { packTokens, state, unpackTokens } from "./state.js";

/** What one token is at the layer that is shown. @typedef {{ index: number, text: string, doc: number, experts: number[], gates: number[], dropped: boolean[], labels: Record<string, string | null>, inMap: boolean }} TokenFacts */

export const CHUNK = 400;

/** Fires `change` (selection, from the address), `hover` and `hits`. */
export class Session extends EventTarget {
  /** @param {TraceDetail} trace @param {DocumentRow[]} documents */
  constructor(trace, documents) {
    super();
    this.trace = trace;
    this.rows = new Map(documents.map((row) => [row.index, row]));
    /** @type {number | null} */
    this.hovered = null;
    /** @type {number[]} */
    this.hits = [];
    this.hitTotal = 0;
    this.pickedText = "";
    /** @type {Set<number> | null} */
    this.pickedSet = null;
  }

  /** @returns {LayerInfo} the layer that is shown */
  get layerInfo() {
    const { layers, default_layer: first } = this.trace;
    const wanted = state.int("layer");
    return layers.find((l) => l.layer === wanted) ?? layers.find((l) => l.layer === first) ?? layers[0];
  }

  get layer() { return this.layerInfo.layer; }

  /** Ids of the layer's living experts; there are gaps where some have died. */
  get experts() { return this.layerInfo.alive ?? Array.from({ length: this.layerInfo.num_experts }, (_, expert) => expert); }

  /** @returns {number | null} */
  get expert() {
    const expert = state.int("expert");
    return expert !== null && this.experts.includes(expert) ? expert : null;
  }

  /** @returns {number | null} */
  get token() {
    const token = state.int("token");
    return token !== null && token >= 0 && token < this.trace.tokens ? token : null;
  }

  /** What colours mean: `expert`, `confidence`, or a label's name. */
  get color() {
    const color = state.get("color") ?? "expert";
    return color === "confidence" || this.labelInfo(color) ? color : "expert";
  }

  /** The label of the label x expert figure; null where the trace has no labels. */
  get label() {
    const label = state.get("label") ?? this.trace.default_label ?? this.trace.labels[0]?.name ?? null;
    return label && this.labelInfo(label) ? label : this.trace.labels[0]?.name ?? null;
  }

  get method() { return state.get("method") === "umap" ? "umap" : "pca"; }

  get query() { return state.get("q") ?? ""; }

  /** Tokens that were lassoed, or null. @returns {Set<number> | null} */
  get picked() {
    const text = state.get("sel") ?? "";
    if (text !== this.pickedText) {
      this.pickedText = text;
      const tokens = unpackTokens(text).filter((token) => token < this.trace.tokens);
      this.pickedSet = tokens.length ? new Set(tokens) : null;
    }
    return this.pickedSet;
  }

  /** What the lassoed tokens have in common; asked once per lasso. @returns {Promise<Picked>} */
  pickedFacts() {
    if (this.pickedOf !== this.pickedText || !this.pickedAnswer) {
      this.pickedOf = this.pickedText;
      this.pickedAnswer = api.picked(this.trace.id, [...this.picked ?? []]);
      this.pickedAnswer.catch(() => { this.pickedAnswer = null; });
    }
    return this.pickedAnswer;
  }

  pickedOf = "";
  /** @type {Promise<Picked> | null} */
  pickedAnswer = null;

  /** @param {string} name @returns {LabelInfo | undefined} */
  labelInfo(name) { return this.trace.labels.find((label) => label.name === name); }

  /** Colour of every expert of a layer. @param {number} [layer] @returns {string[]} */
  palette(layer = this.layer) { return this.trace.palette[String(layer)] ?? []; }

  /** @param {number} expert @param {number} [layer] */
  expertColour(expert, layer = this.layer) { return this.palette(layer)[expert] ?? "currentColor"; }

  /** The colour that a selected expert is shown in: its own, or the accent where there are too many experts for a colour each. @param {number} expert */
  shownColour(expert) {
    const own = this.expertColour(expert);
    return this.palette().filter((hex) => hex === own).length > 1 ? "var(--accent)" : own;
  }

  /** @param {number} doc index of a document @returns {DocumentRow | undefined} */
  document(doc) { return this.rows.get(doc); }

  /** @param {import("./state.js").Patch} patch @param {{ push?: boolean }} [how] */
  select(patch, how) { state.set(patch, how); }

  /** @param {Iterable<number>} tokens */
  pick(tokens) { state.set({ sel: packTokens(tokens) }); }

  clear() {
    state.set({ expert: null, token: null, sel: null, q: null });
  }

  get hasSelection() {
    return this.expert !== null || this.token !== null || this.picked !== null || this.query !== "";
  }

  /** @param {number} step -1 or 1, among the layers that have experts */
  stepLayer(step) {
    const at = this.trace.layers.findIndex((l) => l.layer === this.layer) + step;
    if (at >= 0 && at < this.trace.layers.length) this.select({ layer: this.trace.layers[at].layer });
  }

  /** @param {number} step */
  stepExpert(step) {
    const { experts } = this;
    const from = this.expert === null ? (step > 0 ? -1 : experts.length) : experts.indexOf(this.expert);
    this.select({ expert: experts[(from + step + experts.length) % experts.length] });
  }

  /** @param {number | null} token @param {object} from who says so; it need not hear of it */
  hover(token, from) {
    if (token === this.hovered) return;
    this.hovered = token;
    this.dispatchEvent(new CustomEvent("hover", { detail: { token, from } }));
  }

  /** @param {number[]} hits @param {number} total */
  setHits(hits, total) {
    this.hits = hits;
    this.hitTotal = total;
    this.dispatchEvent(new Event("hits"));
  }

  /** The chunk of text that holds a token, at a layer. @param {number} token @param {number} [layer] @returns {Promise<TokenWindow>} */
  chunk(token, layer = this.layer) {
    const start = Math.floor(token / CHUNK) * CHUNK;
    return api.tokens(this.trace.id, layer, start, Math.min(CHUNK, this.trace.tokens - start));
  }

  /** @param {number} token @returns {Promise<TokenFacts>} */
  async facts(token) { return factsOf(this, await this.chunk(token), token); }
}

/** @param {Session} session @param {TokenWindow} window @param {number} token @returns {TokenFacts} */
export function factsOf(session, window, token) {
  const i = token - window.start;
  const labels = session.trace.labels.map(({ name, values }) => {
    const code = window.labels[name]?.[i] ?? -1;
    return /** @type {[string, string | null]} */ ([name, code < 0 ? null : values[code]]);
  });
  const slots = window.experts[i].flatMap((expert, slot) => (expert >= 0 ? [slot] : []));
  return {
    index: token, text: window.text[i], doc: window.doc[i], experts: slots.map((slot) => window.experts[i][slot]),
    gates: slots.map((slot) => window.gates[i][slot]), dropped: slots.map((slot) => window.dropped[i]?.[slot] ?? false), labels: Object.fromEntries(labels), inMap: window.in_map[i],
  };
}
