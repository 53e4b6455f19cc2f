/** `<moe-run-experts>`: the layers and who is alive in them, the last change in words, and the selected expert with what can be done to it. */

/** @import { GrowthState, RunRow, Slot } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { confirmed } from "../lib/ask.js";
import { fill, h, tip } from "../lib/dom.js";
import { number, percent } from "../lib/format.js";
import { aliveAt, changesWords, lastChanges, slotOf } from "../lib/growth.js";
import { state } from "../lib/state.js";
import { fail, toast } from "../lib/toast.js";

/** What the strip shows. @typedef {{ run: RunRow, growth: GrowthState, layer: number, expert: number | null, step: number | null, loads: Map<number, number>, colour: (expert: number) => string | null, byHand: boolean }} Shown */

export class MoeRunExperts extends HTMLElement {
  layers = h("span", { class: "segmented layer-choice", role: "group", "aria-label": "Layer" });
  chips = h("span", { class: "expert-chips", role: "group", "aria-label": "Experts alive" });
  words = h("span", { class: "last-change", role: "status" });
  card = h("div", { class: "expert-line", hidden: true });
  /** What was clicked with the pointer lets the focus go, so that Space plays the run; what the keyboard pressed keeps it. */
  line = h("div", { class: "experts-line", onclick: (/** @type {MouseEvent} */ event) => {
    const { activeElement } = document;
    if (event.detail && activeElement instanceof HTMLElement && this.line.contains(activeElement)) activeElement.blur();
  } }, this.layers, this.chips, this.words);
  shown = "";

  connectedCallback() { if (!this.firstChild) fill(this, this.line, this.card); }

  /** @param {Shown} now */
  put(now) {
    const { growth, layer, expert, step } = now;
    const alive = aliveAt(growth, layer, step);
    const changes = lastChanges(growth, layer, step);
    const focused = this.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement).dataset.key : undefined;
    const key = JSON.stringify([layer, expert, step, alive.map((slot) => [slot.expert, now.colour(slot.expert), slot.answers]), changes.map((event) => event.id), now.run.status, now.byHand, growth.layers.map((one) => aliveAt(growth, one, step).length)]);
    if (key === this.shown) { this.load(now); return; }
    this.shown = key;
    const slots = growth.slots;
    fill(this.layers, growth.layers.map((one) => {
      const count = aliveAt(growth, one, step).length;
      return h("button", { type: "button", "aria-pressed": String(one === layer), "data-key": `layer ${one}`, title: slots === null ? `${count} experts in layer ${one} ( [ and ] )` : `${count} of ${slots} slots of layer ${one} hold an expert ( [ and ] )`, onclick: () => state.set({ layer: one, expert: null }) },
        `Layer ${one}`, h("span", { class: "count" }, ` ${count}${slots === null ? "" : `/${slots}`}`));
    }));
    fill(this.chips, alive.map((slot) => h("button", {
      type: "button", class: "expert-chip", "aria-pressed": String(slot.expert === expert), "data-key": `expert ${slot.expert}`, "data-expert": slot.expert, title: title(slot),
      onclick: () => state.set({ expert: slot.expert === expert ? null : slot.expert }),
    }, h("span", { class: "swatch", style: { "--c": now.colour(slot.expert) ?? "var(--muted)" } }), `E${slot.expert}`)));
    this.words.textContent = changes.length ? `${step === null ? "Last change" : "Change before"}: ${changesWords(changes)}.` : now.byHand ? "No expert has split yet." : "";
    this.selected(now);
    if (focused) /** @type {HTMLElement | null} */ (this.querySelector(`[data-key="${focused}"]`))?.focus();
  }

  /** @param {Shown} now */
  selected(now) {
    const { growth, layer, expert, step, run } = now;
    const slot = expert === null ? null : slotOf(growth, layer, expert, step);
    this.card.hidden = expert === null;
    if (expert === null) return;
    const live = run.status === "running" || run.status === "paused";
    const alive = growth.alive[String(layer)]?.includes(expert) === true;
    const free = (growth.slots ?? 0) - (growth.alive[String(layer)]?.length ?? 0);
    const order = (/** @type {"split" | "retire"} */ kind, /** @type {string} */ words, /** @type {string} */ question, /** @type {string | null} */ why) => h("button", {
      type: "button", class: "small", disabled: why !== null, title: why ?? "", "data-key": kind, "data-order": kind,
      onclick: async () => {
        if (!await confirmed(question, words.replace("…", ""), "Leave it", kind === "split" ? "primary" : "danger-fill")) return;
        try {
          await api.order(run.id, { kind, layer, expert });
          toast(run.status === "paused" ? "The order is done at once, while the run waits." : "The order is given; it is carried out before the next step.");
        } catch (error) { fail(error); }
      },
    }, words);
    fill(this.card,
      h("span", { class: "swatch", style: { "--c": now.colour(expert) ?? "var(--muted)" } }), h("strong", null, `E${expert}`),
      slot ? h("span", null, life(slot)) : h("span", null, "has not lived yet"),
      slot?.answers ? h("span", null, "responds to ", h("strong", null, slot.answers)) : null,
      h("span", { class: "expert-load num" }),
      now.byHand && live && h("span", { class: "button-row" },
        order("split", `Split E${expert}…`, `Split E${expert} of layer ${layer} now? A copy of it takes one of ${free} free slots; both go on learning, each from the tokens it gets. A checkpoint follows.`, alive ? (free > 0 ? null : "Every slot of this layer holds an expert.") : "It is not alive."),
        order("retire", `Retire E${expert}…`, `Retire E${expert} of layer ${layer} now? Its weights are forgotten and its tokens go to the others. A checkpoint follows; the one before can be forked.`, alive ? (growth.alive[String(layer)].length > 1 ? null : "It is the layer's last expert.") : "It is not alive."),
        tip("The order is carried out before the next step of the run; what came of it is told in a message and marked on every time axis.")),
      h("button", { type: "button", class: "small quiet clear", onclick: () => state.set({ expert: null }) }, "Clear ", h("kbd", null, "Esc")));
    this.load(now);
  }

  /** @param {Shown} now */
  load({ expert, loads }) {
    const place = this.card.querySelector(".expert-load");
    const load = expert === null ? undefined : loads.get(expert);
    if (place) place.textContent = load === undefined ? "" : `load ${percent(load)}`;
  }
}

/** @param {Slot} slot */
function life(slot) {
  const from = slot.parent === null ? "there from the start" : `child of E${slot.parent} since step ${number(slot.born)} (${slot.why})`;
  return slot.died === null ? from : `${from}, gone at step ${number(slot.died)}${slot.end ? ` (${slot.end})` : ""}`;
}

/** @param {Slot} slot */
function title(slot) { return `E${slot.expert}: ${life(slot)}${slot.answers ? `; responds to ${slot.answers}` : ""}`; }

customElements.define("moe-run-experts", MoeRunExperts);
