/** What happened to the experts of a run, in words, and who was alive when. */

/** @import { GrowthState, MoeEvent, RunRow, Slot } from "./types.d.ts" */

import { number } from "./format.js";

/** Events that change who is alive, or say something about it. */
export const CHANGES = new Set(["expansion", "acceptance", "prune", "growth_ended"]);

/** Whether experts of a run can come and go, or have: there are free slots, or something that grows them. @param {RunRow} run @param {GrowthState} growth */
export function canGrow(run, growth) {
  const { model, expansion } = /** @type {Record<string, any>} */ (run.config);
  return Boolean(expansion) || Number(model?.max_experts ?? 0) > Number(model?.num_experts ?? 0) || growth.changes.length > 0;
}

/** Whether a run that has no evaluation yet will have one: those that are trained elsewhere tell of theirs if they have any. @param {RunRow} run */
export function willEvaluate(run) { return run.preset !== "watch" && !run.orphan && ["queued", "running", "paused"].includes(run.status); }

/** Whether a detector watches the run. @param {RunRow} run */
export function isWatched(run) {
  const { expansion } = /** @type {Record<string, any>} */ (run.config);
  return Boolean(expansion) && expansion.detector !== "never";
}

/** Experts of a layer that are alive at a step; a change at step s shows from s + 1 on. @param {GrowthState} growth @param {number} layer @param {number | null} step null: now @returns {Slot[]} */
export function aliveAt(growth, layer, step) {
  const rows = growth.tree.filter((slot) => slot.layer === layer && (step === null ? slot.died === null : slot.born <= step && (slot.died === null || slot.died > step)));
  return rows.sort((a, b) => a.expert - b.expert);
}

/** The row of an expert that lives at a step, else its last one. @param {GrowthState} growth @param {number} layer @param {number} expert @param {number | null} step */
export function slotOf(growth, layer, expert, step) {
  const rows = growth.tree.filter((slot) => slot.layer === layer && slot.expert === expert);
  return rows.find((slot) => step !== null && slot.born <= step && (slot.died === null || slot.died > step)) ?? rows.sort((a, b) => b.born - a.born)[0] ?? null;
}

/** @type {Record<string, string>} */
const WHY = { drift: "its gradient drifted", coverage: "tokens were reached by no expert", random: "at random", "by hand": "by hand" };

/** A change in a sentence. @param {MoeEvent} event */
export function changeWords(event) {
  const { layer, parent, child, expert, why, detector, kept, loss_before: before, loss_after: after } = /** @type {Record<string, any>} */ (event.payload);
  const at = `step ${number(event.step)}, layer ${layer}: `;
  if (event.kind === "expansion") return parent === null || parent === undefined ? `${at}E${child} is new (${WHY[why] ?? why})` : `${at}E${parent} split, E${child} is its child (${detector === "conflict" ? "its tokens pull it two ways" : WHY[why] ?? why})`;
  if (event.kind === "acceptance") return kept ? `${at}E${child}, child of E${parent}, was kept` : `${at}E${child}, child of E${parent}, was taken out again: no gain`;
  if (event.kind === "prune") return `${at}E${expert} was retired (${why})${Number.isFinite(before) && Number.isFinite(after) ? `, held-out loss ${number(before, 3)} → ${number(after, 3)}` : ""}`;
  return `step ${number(event.step)}: growth ended (${why}), the set of experts is fixed`;
}

/** So many changes of one step are told in full. */
const TOLD = 3;

/** The newest changes of a layer up to a step, all of one step, in order. @param {GrowthState} growth @param {number} layer @param {number | null} step */
export function lastChanges(growth, layer, step) {
  const told = growth.changes.filter((event) => (step === null || event.step <= step) && (event.kind === "growth_ended" || event.payload.layer === layer));
  const last = told.findLast((event) => event.kind !== "growth_ended") ?? told[told.length - 1];
  return last?.kind === "growth_ended" ? [last] : told.filter((event) => event.step === last?.step && event.kind !== "growth_ended");
}

/** Changes of one layer and step in a sentence. @param {MoeEvent[]} changes */
export function changesWords(changes) {
  const words = changes.slice(0, TOLD).map((event, i) => (i ? changeWords(event).replace(/^step [^:]*: /, "") : changeWords(event)));
  return [...words, ...(changes.length > TOLD ? [`and ${number(changes.length - TOLD)} more`] : [])].join("; ");
}

/** What came of an order, in a sentence. @param {MoeEvent} event */
export function orderWords(event) {
  const { order, layer, expert, done, why } = /** @type {Record<string, any>} */ (event.payload);
  const what = { pause: "The run is paused", go_on: "The run goes on", checkpoint: "A checkpoint was written", split: `E${expert} of layer ${layer} was split`, retire: `E${expert} of layer ${layer} was retired` }[/** @type {string} */ (order)] ?? `The order ${order} was carried out`;
  if (done) return `${what} (step ${number(event.step)}).`;
  return why ? String(why) : `The order ${order} was refused.`;
}
