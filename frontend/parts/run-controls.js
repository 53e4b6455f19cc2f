/** What can be done to a run: pause it, go on, stop it, write a checkpoint, resume it, go on elsewhere from one of its checkpoints. */

/** @import { RunRow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { number, plural } from "../lib/format.js";
import { state } from "../lib/state.js";
import { fail, toast } from "../lib/toast.js";

/** How its status is written: a run whose process died is none of those that its row knows. @param {RunRow} run */
export function statusWords(run) {
  return run.orphan ? "process died" : run.status;
}

/** What stands in the way of a run, in a sentence; null where nothing does. @param {RunRow} run */
export function troubleWords(run) {
  if (run.orphan && run.job === null) return "The program that trained it has ended without a word.";
  if (run.orphan) return run.checkpoints.length ? `Its process died without a word. It can go on from its last checkpoint, ${checkpointWords(run)}.` : "Its process died without a word, before its first checkpoint: it can only be started again.";
  if (run.status === "queued") return run.ahead ? `It waits for ${plural(run.ahead, "run")}: runs train one after another.` : null;
  return run.error;
}

/** @param {RunRow} run */
function checkpointWords(run) {
  const step = /-c(\d+)$/.exec(run.checkpoints[run.checkpoints.length - 1] ?? "")?.[1];
  return step === undefined ? run.checkpoints[run.checkpoints.length - 1] : `step ${number(Number(step))}`;
}

export class RunControls extends HTMLElement {
  shown = "";

  /** @param {RunRow} run */
  put(run) {
    const key = [run.id, run.status, run.orphan, run.checkpoints.join()].join(" ");
    if (key === this.shown) return;
    this.shown = key;
    this.classList.add("button-row");
    const focused = this.contains(document.activeElement) ? document.activeElement?.textContent : null;
    const live = (run.status === "running" || run.status === "paused") && !run.orphan && run.job !== null;
    const order = (/** @type {string} */ kind, /** @type {string} */ words, /** @type {string} */ title) => act(words, () => api.order(run.id, { kind }), "", title);
    fill(this,
      live && run.status === "running" && order("pause", "Pause", "The process stays alive and waits"),
      live && run.status === "paused" && act("Go on", () => api.order(run.id, { kind: "go_on" }), "primary"),
      live && order("checkpoint", "Checkpoint", "Write a checkpoint now"),
      (live || run.status === "queued") && act("Stop", () => api.stopRun(run.id), "", "It writes a checkpoint and ends; it can be resumed"),
      run.job !== null && (run.orphan || run.status === "stopped" || run.status === "failed") && run.checkpoints.length > 0 && act(run.orphan ? `Resume from ${checkpointWords(run)}` : "Resume", () => api.resumeRun(run.id), "primary"),
      run.checkpoints.length > 0 && h("button", { type: "button", title: "Start a new run from a checkpoint of this one, with changed settings", onclick: () => forkDialog(run) }, "Fork…"));
    if (focused) [...this.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  }
}

/** @param {string} words @param {() => Promise<unknown>} run @param {string} kind @param {string} [title] */
function act(words, run, kind, title = "") {
  const button = h("button", { type: "button", class: kind, title, onclick: async () => {
    button.disabled = true;
    try { await run(); } catch (error) { fail(error); } finally { window.setTimeout(() => { button.disabled = false; }, 1500); }
  } }, words);
  return button;
}

/** Choose the checkpoint that the new run goes on from. @param {RunRow} run */
function forkDialog(run) {
  const options = run.checkpoints.map((id) => ({ id, step: Number(/-c(\d+)$/.exec(id)?.[1] ?? NaN) })).reverse();
  if (!options.length) { toast("There is no checkpoint of this run to go on from."); return; }
  const dialog = h("dialog", { class: "fork-dialog", "aria-labelledby": "fork-title" },
    h("header", null, h("h2", { id: "fork-title" }, `Fork ${run.name}`), h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    h("p", null, "A new run takes the weights, the optimizer's state and the step count of a checkpoint and goes on under settings of its own. This run stays as it is."),
    h("form", { method: "dialog" },
      h("fieldset", null, h("legend", null, "From which checkpoint?"), options.map(({ id, step }, i) => h("label", { class: "fork-choice" }, h("input", { type: "radio", name: "checkpoint", value: id, checked: i === 0 }), Number.isFinite(step) ? `step ${number(step)}` : id, i === 0 ? " (the newest)" : ""))),
      h("div", { class: "button-row" }, h("button", { type: "submit", value: "yes", class: "primary" }, "Choose settings"), h("button", { type: "submit", value: "no" }, "Cancel"))));
  dialog.addEventListener("close", () => {
    const chosen = /** @type {HTMLInputElement | null} */ (dialog.querySelector("input:checked"))?.value;
    dialog.remove();
    if (dialog.returnValue === "yes" && chosen) state.go("new", null, { fork: chosen });
  });
  document.body.append(dialog);
  dialog.showModal();
}

customElements.define("moe-run-controls", RunControls);
