/** `<moe-transport>`: the step that the page looks at: a slider above the tracks, ticks at the snapshots, and a play button. */

import { fill, h } from "../lib/dom.js";
import { number } from "../lib/format.js";

/** How long one snapshot is shown while it plays, ms. */
const PACE = 900;

/** Fires `step` {step | null, ms}: the step wanted, null for the newest, and how long the way there may take. */
export class MoeTransport extends HTMLElement {
  button = h("button", { type: "button", class: "play", "aria-label": "Play", title: "Play the run ( space )", onclick: () => this.toggle() }, "▶");
  slider = h("input", { type: "range", min: "0", max: "1", step: "1", "aria-label": "Step" });
  ticks = h("span", { class: "snapshot-ticks", "aria-hidden": "true" });
  words = h("output", { class: "num step-words" });
  now = h("button", { type: "button", class: "small", hidden: true, onclick: () => { this.pause(); this.tell(null, 0); } }, "Now");
  /** Steps of the snapshots, in order. @type {number[]} */
  stops = [];
  /** @type {number | null} */
  step = null;
  last = 0;
  begin = 0;
  end = 1;
  playing = false;
  turn = 0;
  live = false;

  connectedCallback() {
    if (!this.firstChild) {
      fill(this, this.button, h("span", { class: "rail" }, this.slider, this.ticks), h("span", { class: "transport-end" }, this.words, this.now));
      this.slider.addEventListener("input", () => { this.pause(); this.tell(Math.min(this.last, Number(this.slider.value)), 250); });
      this.slider.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        this.hop(by);
      });
    }
  }

  disconnectedCallback() { this.pause(); }

  /** @param {number[]} stops @param {number | null} step @param {number} last the newest step @param {[number, number]} frame where the slider begins and ends @param {boolean} live */
  put(stops, step, last, [begin, end], live) {
    const along = (/** @type {number} */ at) => `${(100 * Math.max(0, at - begin)) / Math.max(1, end - begin)}%`;
    if (stops.join() !== this.stops.join() || begin !== this.begin || end !== this.end) fill(this.ticks, stops.map((stop) => h("i", { style: { left: along(stop) } })));
    Object.assign(this, { stops, step, last, begin, end, live });
    this.slider.min = String(begin);
    this.slider.max = String(end);
    this.slider.value = String(step ?? last);
    this.slider.style.setProperty("--done", along(last));
    this.now.hidden = step === null;
    this.now.textContent = live ? "Live" : "End";
    this.now.title = live ? "Follow the run ( Esc )" : "To the end of the run ( Esc )";
    this.words.textContent = step === null ? (live ? `live, ${number(last)}` : `step ${number(last)}`) : `step ${number(step)}`;
    this.button.disabled = stops.length < 2;
    this.classList.toggle("back", step !== null);
  }

  /** @param {number | null} step @param {number} ms */
  tell(step, ms) { this.dispatchEvent(new CustomEvent("step", { detail: { step, ms } })); }

  /** To the next or previous snapshot. @param {number} by */
  hop(by) {
    this.pause();
    const from = this.step ?? this.last;
    const next = by > 0 ? this.stops.find((stop) => stop > from) : this.stops.findLast((stop) => stop < from || (this.step === null && stop === from && stop !== this.stops[this.stops.length - 1]));
    if (next !== undefined) this.tell(next, 500);
  }

  toggle() { if (this.playing) this.pause(); else this.play(); }

  pause() {
    this.turn += 1;
    this.playing = false;
    this.show();
  }

  show() {
    this.button.textContent = this.playing ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", this.playing ? "Pause the replay" : "Play");
    this.classList.toggle("playing", this.playing);
  }

  /** What must be there before it plays, so that it plays smoothly. @type {() => Promise<unknown>} */
  ready = async () => undefined;

  /** From here, or from the start where it stands at the end, to the newest snapshot. */
  async play() {
    if (this.stops.length < 2) return;
    const turn = ++this.turn;
    this.playing = true;
    this.show();
    await this.ready();
    if (turn !== this.turn) return;
    const at = this.stops.findIndex((stop) => stop === this.step);
    const between = this.step !== null && at < 0 ? this.stops.findIndex((stop) => stop > (this.step ?? 0)) : at + 1;
    let i = this.step === null || between < 0 || between >= this.stops.length ? 0 : between;
    if (i === 0) { this.tell(this.stops[0], 0); i = 1; await pause(PACE / 2); }
    for (; i < this.stops.length && turn === this.turn; i += 1) {
      this.tell(this.stops[i], PACE);
      await pause(PACE + 60);
    }
    if (turn !== this.turn) return;
    this.pause();
    if (this.live) this.tell(null, 0);
  }
}

/** @param {number} ms */
function pause(ms) { return new Promise((resolve) => { window.setTimeout(resolve, ms); }); }

customElements.define("moe-transport", MoeTransport);
