/** Inspect: one trace's routing, from all sides at once, every side linked to the others. */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { Session } from "../lib/session.js";
import { state } from "../lib/state.js";
import { fail } from "../lib/toast.js";
import { InspectBar } from "../parts/inspect-bar.js";
import { Links } from "../parts/links.js";
import { MoeFigure } from "../parts/figure.js";
import { MoeFindings } from "../parts/findings.js";
import { MoeMeasures } from "../parts/measures.js";
import { MoeSelection } from "../parts/selection.js";
import { MoeSide } from "../parts/side.js";
import { MoeText } from "../parts/text.js";
import { stepThrough } from "../parts/steps.js";
import { MoeTraceForm } from "../parts/trace-form.js";
import { facts, warnings } from "../parts/trace-facts.js";

/** What a first visit opens: a bundled model's trace if there is one, else the newest. @returns {Promise<string | null>} */
export async function firstTrace() {
  const traces = (await api.traces()).sort((a, b) => Number(b.origin === "sample") - Number(a.origin === "sample") || (a.origin === "sample" ? Number(a.run !== null) - Number(b.run !== null) || a.id.localeCompare(b.id) : 0));
  const first = traces.find((trace) => trace.origin === "sample" && trace.kind === "text") ?? traces[0];
  return first?.id ?? null;
}

export class MoeInspect extends HTMLElement {
  /** @type {Session | null} */
  session = null;
  /** @type {Links | null} */
  links = null;
  bar = new InspectBar();
  selection = new MoeSelection();
  findings = new MoeFindings();
  text = new MoeText();
  map = new MoeFigure();
  heat = new MoeFigure();
  labels = new MoeFigure();
  side = new MoeSide();
  measures = new MoeMeasures();
  opened = "";

  connectedCallback() { this.classList.add("view-inspect"); }

  disconnectedCallback() { this.links?.close(); }

  /** Called whenever the address changes. */
  update() {
    const { id } = state.route;
    if (id === null) this.openFirst().catch(fail);
    else if (id !== this.opened) this.open(id).catch((error) => this.refuse(id, error));
    else this.session?.dispatchEvent(new Event("change"));
  }

  async openFirst() {
    const first = await firstTrace();
    if (state.route.id !== null || !this.isConnected) return;
    if (first) state.go("inspect", first, state.route.params, { push: false });
    else fill(this, h("div", { class: "empty" }, h("h1", null, "No trace yet"), h("p", null, "A trace is a text (or images) run through a model, with every routing decision written down."), h("a", { class: "button primary", href: "#/library" }, "Choose a checkpoint to trace")));
  }

  /** @param {string} id @param {unknown} error */
  refuse(id, error) {
    this.opened = "";
    fill(this, h("div", { class: "empty" }, h("h1", null, `Trace ${id} cannot be shown`), h("p", { role: "alert" }, error instanceof Error ? error.message : String(error)), h("a", { class: "button primary", href: "#/library" }, "To the library")));
    if (error instanceof Error && error.name !== "ApiError") throw error;
  }

  /** @param {string} id */
  async open(id) {
    this.opened = id;
    this.links?.close();
    this.session = null;
    if (!this.firstChild) fill(this, h("p", { class: "loading", role: "status" }, "Opening the trace…"));
    const [trace, documents] = await Promise.all([api.trace(id), api.documents(id)]);
    if (this.opened !== id || !this.isConnected) return;
    const session = new Session(trace, documents);
    this.session = session;
    this.fresh();
    this.lay(session);
    this.text.session = session;
    this.links = new Links(session, this);
    this.bar.open(session, this).catch(fail);
    this.selection.open(session);
    this.findings.open(session);
    this.side.open(session);
    document.title = `${trace.name} · moescope`;
    await this.links.first;
    if (session === this.session) this.measures.open(session);
  }

  /** New elements for a new trace: nothing of the old one can linger. */
  fresh() {
    this.bar = new InspectBar();
    this.text = new MoeText();
    this.map = new MoeFigure();
    this.heat = new MoeFigure();
    this.labels = new MoeFigure();
    this.side = new MoeSide();
    this.measures = new MoeMeasures();
    this.map.explain = "Every point is a token, placed by the vector that the router saw. Near points look alike to the router. Drag to lasso, scroll to zoom, double-click to see all.";
    this.heat.explain = "One row per layer, one column per expert: how much of the layer's work each expert gets, against an even share. Click a cell to select the expert.";
    this.labels.explain = "How much more often an expert takes tokens with a label's value than it takes tokens at all. 1× is no preference. Click a cell to select the expert.";
  }

  /** @param {Session} session */
  lay(session) {
    const { trace } = session;
    const ask = new MoeTraceForm();
    const words = trace.kind === "patches" ? "Images" : trace.kind === "vectors" ? "Vectors" : "Text";
    fill(this, h("div", { class: "inspect-top" }, this.bar, warnings(trace), this.findings, this.selection,
      h("div", { class: "inspect-grid" },
        h("section", { class: "panel area-text", "aria-label": words }, h("header", null, h("h2", null, words), h("span", { class: "legend-words muted" }), h("span", { class: "text-steps" })), this.text),
        h("section", { class: "panel area-map" }, this.map),
        h("section", { class: "panel area-heat" }, this.heat),
        h("section", { class: "panel area-side" }, this.side),
        trace.labels.length > 0 && h("section", { class: "panel area-labels" }, this.labels))),
      h("div", { class: "inspect-more" },
        h("section", { class: "panel area-measures" }, h("header", null, h("h2", null, "Measures of this layer")), this.measures),
        h("section", { class: "panel area-ask" }, h("header", null, h("h2", null, trace.checkpoint ? "Run your own text through this model" : "About this trace")),
          trace.checkpoint ? ask : null, facts(trace))));
    if (trace.checkpoint) {
      ask.open({ id: trace.checkpoint, name: trace.name, kind: trace.kind }).catch(fail);
      const heading = ask.parentElement?.querySelector("h2");
      if (heading && trace.kind !== "text") heading.textContent = "Run more data through this model";
    }
  }

  /** The keys of this view; true if one was meant for it. @param {KeyboardEvent} event */
  key(event) {
    const { session } = this;
    if (!session) return false;
    switch (event.key) {
      case "[": session.stepLayer(-1); return true;
      case "]": session.stepLayer(1); return true;
      case ",": session.stepExpert(-1); return true;
      case ".": session.stepExpert(1); return true;
      case "n": case "N": stepThrough(session, this.text, event.key === "n" ? 1 : -1).catch(fail); return true;
      case "/": this.bar.search.focus(); this.bar.search.select(); return true;
      case "Escape": session.clear(); return true;
      case "ArrowLeft": case "ArrowRight": case "ArrowUp": case "ArrowDown": {
        const token = this.text.neighbour(event.key);
        if (token !== null) session.select({ token });
        return true;
      }
      default: return false;
    }
  }
}
