/** The tools of Inspect: which trace, which layer, what colours mean, which map, search, and whether the capture was verified. */

/** @import { Session } from "../lib/session.js" */
/** @import { MoeInspect } from "../views/inspect.js" */

import { api } from "../lib/api.js";
import { debounce, fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";
import { state } from "../lib/state.js";
import { checkBadge } from "./trace-facts.js";

export class InspectBar extends HTMLElement {
  search = h("input", { type: "search", class: "search", placeholder: "Search  /", "aria-label": "Search the text", maxLength: 200 });
  found = h("span", { class: "found num", role: "status" });
  slider = h("input", { type: "range", min: "0", step: "1", "aria-label": "Layer" });
  layerName = h("output", { class: "layer-name num" });
  color = h("select", { "aria-label": "Colour tokens by" });
  label = h("select", { "aria-label": "Label to set against experts" });
  traces = h("select", { "aria-label": "Trace", class: "trace-picker" });
  methods = h("div", { class: "segmented", role: "group", "aria-label": "Projection of the map" });
  ears = new AbortController();
  at = -1;

  disconnectedCallback() { this.ears.abort(); }

  /** @param {Session} session @param {MoeInspect} view */
  async open(session, view) {
    const { trace } = session;
    const { signal } = this.ears;
    this.classList.add("toolbar");
    fill(this,
      field("Trace", this.traces), checkBadge(trace),
      h("div", { class: "field layers" }, h("span", { class: "field-name" }, "Layer"),
        h("button", { type: "button", class: "icon", "aria-label": "Previous layer", title: "Previous layer ( [ )", onclick: () => session.stepLayer(-1) }, "‹"),
        this.slider, h("button", { type: "button", class: "icon", "aria-label": "Next layer", title: "Next layer ( ] )", onclick: () => session.stepLayer(1) }, "›"), this.layerName),
      field("Colour", this.color), trace.labels.length > 1 && field("Label", this.label),
      h("div", { class: "field" }, h("span", { class: "field-name" }, "Map"), this.methods),
      h("div", { class: "field search-field" }, this.search, this.found));
    this.slider.max = String(trace.layers.length - 1);
    this.slider.addEventListener("input", () => session.select({ layer: trace.layers[Number(this.slider.value)].layer }));
    fill(this.color, option("expert", "expert"), trace.labels.map(({ name }) => option(name, name)), option("confidence", "confidence"));
    this.color.addEventListener("change", () => session.select({ color: this.color.value, ...(session.labelInfo(this.color.value) ? { label: this.color.value } : {}) }));
    fill(this.label, trace.labels.map(({ name }) => option(name, name)));
    this.label.addEventListener("change", () => session.select({ label: this.label.value }));
    const type = debounce(200, () => session.select({ q: this.search.value.trim() }, { push: false }));
    this.search.addEventListener("input", type);
    this.search.addEventListener("keydown", (event) => this.searchKey(event, session, view));
    session.addEventListener("change", () => this.refresh(session), { signal });
    session.addEventListener("hits", () => this.foundWords(session), { signal });
    this.refresh(session);
    await this.fillTraces(session);
  }

  /** @param {Session} session */
  async fillTraces({ trace }) {
    const all = await api.traces();
    const groups = new Map([["sample", "Bundled samples"], ["recorded", "Recorded here"], ["run", "Snapshots of runs"], ["upload", "Uploaded"]]);
    fill(this.traces, [...groups].map(([origin, words]) => {
      const some = all.filter((row) => row.origin === origin && (origin !== "run" || row.run === trace.run));
      return some.length > 0 && h("optgroup", { label: words }, some.map((row) => option(row.id, row.name)));
    }));
    this.traces.value = trace.id;
    this.traces.addEventListener("change", () => state.go("inspect", this.traces.value));
  }

  /** @param {Session} session */
  refresh(session) {
    const { trace, layerInfo, method } = session;
    this.slider.value = String(trace.layers.indexOf(layerInfo));
    const routed = `${layerInfo.k === null ? "some" : layerInfo.k} of ${layerInfo.num_experts} experts`;
    fill(this.layerName, h("strong", null, layerInfo.layer), h("span", { class: "muted" }, ` · ${routed}`), layerInfo.causal === false && trace.kind === "text" && h("span", { class: "chip", title: "What a token receives here depends on later tokens too: a leak for a model that predicts the next token." }, "not causal"));
    this.layerName.title = `A token goes to ${routed}. Router: ${layerInfo.router} at ${layerInfo.path}`;
    this.color.value = session.color;
    if (session.label) this.label.value = session.label;
    if (document.activeElement !== this.search) this.search.value = session.query;
    fill(this.methods, ["pca", "umap"].map((name) => h("button", {
      type: "button", "aria-pressed": String(name === method), onclick: () => session.select({ method: name === "pca" ? null : name }),
      title: name === "pca" ? "Principal components: linear, at once" : "UMAP: keeps neighbours together, takes a while the first time",
    }, name.toUpperCase())));
    this.foundWords(session);
  }

  /** @param {Session} session */
  foundWords(session) {
    const { hits, hitTotal, query, token } = session;
    this.at = token === null ? -1 : hits.indexOf(token);
    this.found.textContent = !query ? "" : hits.length === 0 ? "no match" : `${this.at >= 0 ? `${number(this.at + 1)} of ` : ""}${number(hitTotal)}`;
  }

  /** @param {KeyboardEvent} event @param {Session} session @param {MoeInspect} view */
  searchKey(event, session, view) {
    if (event.key === "Enter") {
      session.select({ q: this.search.value.trim() }, { push: false });
      if (session.hits.length) this.step(session, view, event.shiftKey ? -1 : 1);
      else session.addEventListener("hits", () => { if (session.hits.length) this.step(session, view, 1); }, { once: true });
    } else if (event.key === "Escape") {
      event.stopPropagation();
      if (this.search.value) { this.search.value = ""; session.select({ q: null }, { push: false }); } else this.search.blur();
    }
  }

  /** Go to the next match after the selected token. @param {Session} session @param {MoeInspect} view @param {number} by */
  step(session, view, by) {
    const { hits, token } = session;
    if (!hits.length) return;
    const from = token ?? -1;
    const next = by > 0 ? hits.find((hit) => hit > from) ?? hits[0] : hits.findLast((hit) => hit < from) ?? hits[hits.length - 1];
    session.select({ token: next });
    view.text.reveal(next).catch(() => undefined);
  }
}

/** @param {string} value @param {string} words */
function option(value, words) { return h("option", { value }, words); }

/** @param {string} name @param {HTMLElement} control */
function field(name, control) { return h("label", { class: "field" }, h("span", { class: "field-name" }, name), control); }

customElements.define("moe-inspect-bar", InspectBar);
