/** The head of a run: which, how far, how fast, what it was told and what can be done to it. */

/** @import { MoeEvent, RunRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { compact, duration, number } from "../lib/format.js";
import { willEvaluate } from "../lib/growth.js";
import { jobs } from "../lib/jobs.js";
import { state } from "../lib/state.js";
import { fail } from "../lib/toast.js";
import { lines } from "./presets.js";
import { RunControls, statusWords, troubleWords } from "./run-controls.js";

/** Whether the model's positions see later tokens under a next-token loss. @param {Record<string, any>} started */
const sees = (started) => started.config?.model?.head === "next_token" && (started.layers ?? []).some((/** @type {any} */ layer) => layer.causal === false);

export class RunHead extends HTMLElement {
  picker = h("select", { "aria-label": "Run", class: "trace-picker" });
  status = h("span", { class: "chip" });
  leaky = h("span", { class: "leaky-mark", hidden: true }, "leaky control", tip("The router sees later tokens, so the loss of this run is no language model's: a control, never a result."));
  bar = h("progress", { max: 1, value: 0, "aria-label": "Steps done" });
  step = h("span", { class: "num" });
  numbers = h("dl", { class: "run-numbers" });
  controls = new RunControls();
  trouble = h("div");
  layers = h("select", { "aria-label": "Layer of the load and the map" });
  layerField = h("label", { class: "field", hidden: true }, h("span", { class: "field-name" }, "Layer"), this.layers);
  /** Whether the layer is chosen here: of a run whose experts come and go it is chosen among the experts. */
  chooses = true;
  about = h("summary", null, "Configuration");

  /** @param {boolean} here */
  choose(here) {
    this.chooses = here;
    if (!here) this.layerField.hidden = true;
  }

  told = h("pre", { class: "config", tabIndex: 0 });
  /** @type {Record<string, unknown>} */
  last = {};
  /** @type {RunRow | null} */
  run = null;
  watched = () => { if (this.run) this.remaining(this.run); };

  connectedCallback() { jobs.addEventListener("change", this.watched); }

  disconnectedCallback() { jobs.removeEventListener("change", this.watched); }

  /** @param {RunRow} run @param {RunRow[]} runs @param {() => number | null} layer */
  open(run, runs, layer) {
    this.classList.add("run-head");
    fill(this,
      h("div", { class: "toolbar" }, h("label", { class: "field" }, h("span", { class: "field-name" }, "Run"), this.picker), this.status, this.leaky, this.bar, this.step, this.layerField, this.controls,
        h("a", { class: "button new-run", href: `#/new?preset=${encodeURIComponent(run.preset ?? "")}` }, "New run")),
      this.trouble, h("div", { class: "run-line" }, this.numbers, h("details", { class: "run-config" }, this.about, this.told)));
    fill(this.picker, runs.sort((a, b) => b.created.localeCompare(a.created)).map((row) => h("option", { value: row.id }, `${row.name} (${statusWords(row)})`)));
    this.picker.value = run.id;
    this.picker.addEventListener("change", () => state.go("run", this.picker.value));
    this.layers.addEventListener("change", () => state.set({ layer: this.layers.value }));
    this.layer(layer(), null);
    this.put(run);
    this.latest(run.id).catch(fail);
  }

  /** @param {string} run */
  async latest(run) {
    const kinds = ["run_started", "train", "eval", "load"];
    for (const kind of kinds) {
      const events = await api.events(run, { kind });
      const event = events[events.length - 1];
      if (event) this.hear(event);
    }
  }

  /** @param {number | null} wanted @param {number | null} shown */
  layer(wanted, shown) { this.layers.value = String(wanted ?? shown ?? this.layers.value); }

  /** @param {RunRow} run */
  put(run) {
    this.run = run;
    this.status.textContent = statusWords(run);
    const option = [...this.picker.options].find((item) => item.value === run.id);
    if (option) option.textContent = `${run.name} (${statusWords(run)})`;
    this.status.className = `chip ${run.orphan ? "failed" : run.status}`;
    this.told.textContent = lines(run.config).join("\n");
    const trouble = troubleWords(run);
    fill(this.trouble, run.fork ? h("p", { class: "forked small-text" }, "Forked from ", h("a", { href: `#/run/${encodeURIComponent(run.fork.run)}` }, run.fork.run), ` at step ${number(run.fork.step)}.`) : null,
      trouble ? h("p", { class: `banner${run.status === "queued" ? "" : " bad"}`, role: "alert" }, trouble) : null);
    this.controls.put(run);
    this.remaining(run);
  }

  /** @param {RunRow} run */
  remaining(run) {
    this.bar.max = Math.max(1, run.steps);
    this.bar.value = run.step;
    this.bar.hidden = !run.steps;
    const job = run.job === null ? null : jobs.all.get(run.job);
    const live = !run.orphan && (run.status === "running" || run.status === "queued");
    const left = live && job ? duration(job.seconds_left) : "";
    const stage = live && job && (run.status === "queued" || run.step === 0) ? ` · ${job.stage || "waiting for its turn"}` : "";
    this.step.textContent = `step ${number(run.step)}${run.steps ? ` of ${number(run.steps)}` : ""}${left ? ` · ${left} left` : ""}${stage}`;
  }

  /** @param {MoeEvent} event */
  hear(event) {
    const { payload } = event;
    if (event.kind === "run_started") this.last = { ...this.last, params: payload.params, device: payload.device, leaky: sees(payload) };
    else if (event.kind === "train") this.last = { ...this.last, loss: payload.loss, lr: payload.lr, tokens: payload.tokens, seconds: payload.seconds };
    else if (event.kind === "eval") this.last = { ...this.last, eval: payload.loss, accuracy: payload.accuracy, evaluated: event.step };
    else if (event.kind === "load") this.loads(/** @type {any[]} */ (payload.layers));
    else return;
    if (this.run) { this.run.step = Math.max(this.run.step, event.step); this.remaining(this.run); }
    if (!this.pending) this.pending = requestAnimationFrame(() => { this.pending = 0; this.write(); });
  }

  pending = 0;

  /** @param {{ layer: number, maxvio: number, dropped: number }[]} layers */
  loads(layers) {
    const worst = layers.reduce((a, b) => (b.maxvio > a.maxvio ? b : a));
    this.last = { ...this.last, maxvio: worst.maxvio, maxvioLayer: worst.layer };
    if (this.layers.options.length !== layers.length) {
      const now = this.layers.value || String(state.int("layer") ?? layers[0].layer);
      fill(this.layers, layers.map(({ layer }) => h("option", { value: layer }, `${layer}`)));
      this.layers.value = now;
      this.layerField.hidden = !this.chooses || layers.length < 2;
    }
  }

  write() {
    const { loss, eval: held, evaluated, accuracy, lr, tokens, seconds, maxvio, maxvioLayer, params, device } = /** @type {Record<string, any>} */ (this.last);
    this.leaky.hidden = !this.last.leaky;
    const what = /** @type {any} */ (this.run?.config)?.model?.head === "values" ? "Mean squared error" : "Cross-entropy in nats";
    const speed = tokens && seconds ? `${compact(tokens / seconds)} tokens/s` : "–";
    /** @type {[string, string, string][]} */
    const rows = [
      ["Loss", number(loss, 4), `${what} of the last step, without auxiliary losses.`],
      ...(held === undefined && !(this.run && willEvaluate(this.run)) ? [] : /** @type {[string, string, string][]} */ ([["Held-out loss", held === undefined ? "–" : `${number(held, 4)} (step ${evaluated})`, `${what} on data that is not trained on, and the step it was last measured at.`]])),
      ...(accuracy === undefined || accuracy === null ? [] : /** @type {[string, string, string][]} */ ([["Held-out accuracy", `${number(accuracy, 3)} (step ${evaluated})`, "Share of held-out images that are classified right."]])),
      ["MaxVio, worst layer", maxvio === undefined ? "–" : `${number(maxvio, 3)} (layer ${maxvioLayer})`, "How far the busiest expert lies above an even share, in the layer where it is worst. 0 is perfectly even."],
      ["Learning rate", number(lr, 2), "After warm-up and cosine."], ["Tokens seen", compact(tokens), "Tokens trained on since the start."],
      ["Speed", speed, "Tokens per second since the start."],
    ];
    this.about.textContent = `Configuration${params === undefined ? "" : `: ${compact(params)} weights`}${device && device !== "none" ? ` on ${device}` : ""}`;
    const shown = new Map([...this.numbers.querySelectorAll("dt")].map((dt) => [dt.dataset.name, dt.nextElementSibling]));
    if (shown.size === rows.length) for (const [name, value] of rows) { const at = shown.get(name); if (at) at.textContent = value; else shown.clear(); }
    if (shown.size !== rows.length) fill(this.numbers, rows.map(([name, value, help]) => h("div", null, h("dt", { "data-name": name }, name, tip(help)), h("dd", { class: "num" }, value))));
  }
}

customElements.define("moe-run-head", RunHead);
