/** Run: a training run, live or finished: who overloads, drifts, splits and takes over what, at the step one looks at. */

/** @import { GrowthState, MoeEvent, RunRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { debounce, fill, h } from "../lib/dom.js";
import { aliveAt, canGrow, CHANGES, changeWords, isWatched, orderWords } from "../lib/growth.js";
import { state } from "../lib/state.js";
import { stream } from "../lib/stream.js";
import { fail, toast } from "../lib/toast.js";
import { MoePresets } from "../parts/presets.js";
import { RunHead } from "../parts/run-head.js";
import { MoeRunExperts } from "../parts/run-experts.js";
import { MoeRunMap } from "../parts/run-map.js";
import { MoeRunMore } from "../parts/run-more.js";
import { MoeRunTracks } from "../parts/run-tracks.js";

const ENDS = new Set(["run_finished", "run_stopped", "run_failed"]);
/** Events after which the run's row is asked for again. */
const ROW = new Set([...ENDS, "snapshot", "checkpoint", "run_started", "run_resumed", "run_paused", "run_unpaused"]);

export class MoeRun extends HTMLElement {
  /** @type {RunRow | null} */
  run = null;
  /** @type {GrowthState | null} */
  growth = null;
  opened = "";
  head = new RunHead();
  experts = new MoeRunExperts();
  tracks = new MoeRunTracks();
  map = new MoeRunMap();
  more = new MoeRunMore();
  /** Newest load of every expert, by layer. @type {Map<number, Map<number, number>>} */
  loads = new Map();
  /** How long the way to the step may take that was just asked for, ms. */
  travel = 0;
  /** What the page is laid out for. */
  laid = { grows: false, drifts: false };
  /** @type {(() => void) | null} */
  deaf = null;
  lived = () => { if (stream.status === "live" && this.run) this.again(false, false).catch(fail); };
  fresh = debounce(120, () => { this.again(false, false).catch(fail); });
  grown = debounce(150, () => { this.regrow().then(() => this.strip()).catch(fail); });

  connectedCallback() {
    this.classList.add("view-run");
    this.deaf = stream.listen((event) => this.hear(event));
    stream.addEventListener("status", this.lived);
  }

  disconnectedCallback() {
    this.deaf?.();
    stream.removeEventListener("status", this.lived);
  }

  update() {
    const { id } = state.route;
    if (id === null) this.openFirst().catch(fail);
    else if (id !== this.opened) this.open(id).catch((error) => this.refuse(id, error));
    else if (this.run) this.moved().catch(fail);
  }

  async openFirst() {
    const runs = await api.runs();
    if (state.route.id !== null || !this.isConnected) return;
    const first = runs.find((run) => run.status === "running" || run.status === "paused") ?? runs.sort((a, b) => b.created.localeCompare(a.created))[0];
    if (first) { state.go("run", first.id, {}, { push: false }); return; }
    document.title = "Run · moescope";
    fill(this, h("div", { class: "empty wide" }, h("h1", null, "No run yet"), h("p", null, "Start one of these and watch its loss, its experts' load and its token map while it trains."), new MoePresets()));
  }

  /** @param {string} id @param {unknown} error */
  refuse(id, error) {
    this.opened = "";
    fill(this, h("div", { class: "empty" }, h("h1", null, `Run ${id} cannot be shown`), h("p", { role: "alert" }, error instanceof Error ? error.message : String(error)), h("a", { class: "button primary", href: "#/library" }, "To the library")));
    if (error instanceof Error && error.name !== "ApiError") throw error;
  }

  /** @param {string} id */
  async open(id) {
    this.opened = id;
    await stream.whenLive(3000);
    const [run, runs] = await Promise.all([api.run(id), api.runs()]);
    if (this.opened !== id) return;
    this.run = run;
    this.growth = null;
    this.loads.clear();
    document.title = `${run.name} · moescope`;
    [this.head, this.experts, this.tracks, this.map, this.more] = [new RunHead(), new MoeRunExperts(), new MoeRunTracks(), new MoeRunMap(), new MoeRunMore()];
    const [growth, drifts] = await Promise.all([api.growth(id), isWatched(run) || api.events(id, { kind: "drift", limit: 1 }).then((events) => events.length > 0)]);
    if (this.opened !== id) return;
    this.growth = growth;
    this.laid = { grows: canGrow(run, growth), drifts };
    this.head.chooses = !growth.layers.length;
    fill(this, this.head, this.experts, h("div", { class: "run-grid" },
      this.tracks, h("div", { class: "run-side" }, h("section", { class: "panel area-snap" }, this.map), this.more.flowPanel), this.more));
    this.listen();
    this.head.open(run, runs, () => this.layer());
    this.tracks.open(run, this.laid.grows, drifts);
    this.more.open(run, this.laid.grows);
    await this.map.open(run);
    await this.moved();
  }

  listen() {
    const pick = (/** @type {Event} */ event) => this.pick(/** @type {CustomEvent} */ (event).detail);
    const step = (/** @type {Event} */ event) => this.goTo(/** @type {CustomEvent} */ (event).detail);
    this.tracks.addEventListener("pick", pick);
    this.more.addEventListener("pick", pick);
    this.tracks.addEventListener("step", step);
    this.more.addEventListener("step", step);
    this.tracks.transport.addEventListener("step", step);
    this.tracks.transport.ready = () => this.map.ready(this.layer());
    this.tracks.addEventListener("drawn", () => this.strip(), true);
  }

  /** @param {{ expert: number, step?: number }} picked */
  pick({ expert, step }) {
    if (!Number.isInteger(expert)) return;
    const same = expert === this.expert();
    state.set({ expert: same && step === undefined ? null : expert });
  }

  /** @param {{ step: number | null, ms?: number }} wanted */
  goTo({ step, ms = 500 }) {
    this.travel = ms;
    state.set({ step }, { push: false });
  }

  /** The layer the page shows: the one of the address, or the first that has experts. */
  layer() {
    const wanted = state.int("layer");
    const layers = this.growth?.layers ?? [];
    return layers.length ? (wanted !== null && layers.includes(wanted) ? wanted : layers[0] ?? null) : wanted;
  }

  expert() {
    const expert = state.int("expert");
    return expert !== null && expert >= 0 ? expert : null;
  }

  async regrow() {
    const { opened } = this;
    const growth = await api.growth(opened);
    if (opened !== this.opened) return;
    this.growth = growth;
    this.head.choose(!growth.layers.length);
  }

  /** The address has changed: every part shows its layer, expert and step. */
  async moved() {
    const { run } = this;
    if (!run) return;
    const look = { layer: this.layer(), expert: this.expert(), step: state.int("step") };
    const { travel } = this;
    this.travel = 0;
    this.strip();
    this.move();
    await Promise.all([
      this.tracks.look(look).then(() => this.head.layer(look.layer, this.tracks.tracks.get("load_over_time")?.figure?.layout.meta.layer ?? null)),
      this.map.show(look.step, look.layer, look.expert, this.colour(look.expert), travel),
      this.more.look(look, this.map.rowAt(look.step)?.step ?? null, this.map.stops),
    ]);
  }

  move() {
    const { run, tracks } = this;
    if (run) tracks.transport.put(this.map.stops, state.int("step"), run.step, [tracks.begin, tracks.end], ["running", "paused", "queued"].includes(run.status) && !run.orphan);
  }

  /** @param {number | null} expert */
  colour(expert) { return expert === null ? null : this.tracks.colours().get(expert) ?? null; }

  /** The line of experts. */
  strip() {
    const { run, growth } = this;
    const layer = this.layer();
    if (!run || !growth?.layers.length || layer === null) return;
    const colours = this.tracks.colours();
    this.experts.put({ run, growth, layer, expert: this.expert(), step: state.int("step"), loads: this.loads.get(layer) ?? new Map(), colour: (expert) => colours.get(expert) ?? null, byHand: this.laid.grows });
  }

  /** @param {MoeEvent} event */
  hear(event) {
    if (event.run !== this.opened || !this.run) return;
    if (event.step > this.run.step) this.run.step = event.step;
    if ((event.kind === "drift" && !this.laid.drifts) || (event.kind === "expansion" && !this.laid.grows)) { this.open(this.opened).catch(fail); return; }
    this.tracks.hear(event);
    this.more.hear(event);
    this.head.hear(event);
    if (event.kind === "load") this.loaded(/** @type {any[]} */ (event.payload.layers));
    if (CHANGES.has(event.kind) || event.kind === "run_started" || (event.kind === "load" && !this.growth?.layers.length)) this.grown();
    if (event.kind === "order" && !(event.payload.done && event.payload.order === "split")) toast(orderWords(event), { kind: event.payload.done ? "info" : "error" });
    if (event.kind === "expansion" && event.payload.why === "by hand") toast(`By hand, at ${changeWords(event).replace(" (by hand)", "")}.`);
    if (ROW.has(event.kind)) { if (event.kind === "run_resumed" || ENDS.has(event.kind)) this.again(event.kind === "run_resumed", ENDS.has(event.kind)).catch(fail); else this.fresh(); }
    if (!this.moving) this.moving = requestAnimationFrame(() => { this.moving = 0; this.move(); });
  }

  moving = 0;

  /** @param {{ layer: number, load: (number | null)[] }[]} layers */
  loaded(layers) {
    for (const { layer, load } of layers) this.loads.set(layer, new Map(load.map((share, expert) => [expert, share ?? 0])));
    if (this.expert() !== null) this.strip();
  }

  /** The run's row has changed; its curves too if it went back to a checkpoint or has ended. @param {boolean} back @param {boolean} ended */
  async again(back, ended) {
    const run = await api.run(this.opened);
    if (run.id !== this.opened || !this.run) return;
    this.run = run;
    this.head.put(run);
    this.tracks.put(run);
    if (back || ended) {
      this.tracks.again(back);
      this.more.again();
      await this.regrow();
    }
    await this.map.open(run);
    await this.moved();
  }

  /** The keys of this view; true if one was meant for it. @param {KeyboardEvent} event */
  key(event) {
    const { transport } = this.tracks;
    if (!this.run) return false;
    switch (event.key) {
      case " ": if (event.target instanceof HTMLButtonElement || event.target instanceof HTMLAnchorElement) return false; transport.toggle(); return true;
      case "ArrowLeft": transport.hop(-1); return true;
      case "ArrowRight": transport.hop(1); return true;
      case "[": this.stepLayer(-1); return true;
      case "]": this.stepLayer(1); return true;
      case ",": this.stepExpert(-1); return true;
      case ".": this.stepExpert(1); return true;
      case "Escape": transport.pause(); if (this.expert() !== null) state.set({ expert: null }); else this.goTo({ step: null, ms: 0 }); return true;
      default: return false;
    }
  }

  /** @param {number} by */
  stepLayer(by) {
    const layers = this.growth?.layers.length ? this.growth.layers : [...this.head.layers.options].map((option) => Number(option.value));
    const next = layers[layers.indexOf(this.layer() ?? layers[0]) + by];
    if (next !== undefined) state.set({ layer: next, expert: null });
  }

  /** @param {number} by */
  stepExpert(by) {
    const layer = this.layer();
    const alive = this.growth && layer !== null ? aliveAt(this.growth, layer, state.int("step")).map((slot) => slot.expert) : [...this.tracks.colours().keys()].sort((a, b) => a - b);
    if (!alive.length) return;
    const at = alive.indexOf(this.expert() ?? -1);
    state.set({ expert: alive[(at < 0 ? (by > 0 ? 0 : alive.length - 1) : at + by + alive.length) % alive.length] });
  }
}
