/** The keys, and what the words on the page mean, in a dialog. */

import { api } from "../lib/api.js";
import { h } from "../lib/dom.js";

/** @type {[string[], string][]} */
const KEYS = [
  [["[", "]"], "one layer down or up"],
  [["←", "→", "↑", "↓"], "move the selected token through the text"],
  [[",", "."], "previous or next expert of the layer"],
  [["n", "N"], "next or previous token of the expert, the lasso or the search"],
  [["/"], "search the text; Enter goes to the next match. In the form of a new run: search a setting"],
  [["space"], "play a run, or pause: the map moves from snapshot to snapshot, the line goes along"],
  [["←", "→"], "of a run: to the snapshot before or after"],
  [["Esc"], "clear the selection; of a run, then: back to now"],
  [["?"], "these keys"],
];

/** @type {[string, string][]} */
const WORDS = [
  ["Expert", "One of several feed-forward networks of a layer; each token visits only a few of them."],
  ["Router", "The small network that chooses a token's experts. Its logits become scores, which select, and gates, which weigh."],
  ["Gate", "The weight with which a chosen expert's output enters the layer's sum."],
  ["Load", "An expert's share of all assignments. Even is 1 over the number of experts."],
  ["Null", "What chance would give: random routing with the same loads, or shuffled labels. A number means something only beside its null."],
  ["Lift", "How many times as often as its share of everything: 2× is twice as often, 1× is no preference."],
  ["Drift", "A growth detector looks at every expert's gradient: where it rises and points elsewhere than the weights, the expert is asked for more than it can hold."],
  ["Split", "A free slot becomes a copy of an expert, its child; from then on each learns from the tokens it gets."],
  ["Lineage", "Which expert came from which, when, and until when it lived."],
  ["Snapshot", "The routing of the same probe tokens at one step of a run: what the map, the flow and the lineage's words are drawn from."],
  ["Sweep", "Variants of one model, each trained with several seeds on the same data. A seed draws the weights, the order and the noise."],
  ["95 % interval", "How sure a mean over seeds is (Student's t). Where the interval of a difference holds 0, seeds alone may explain it."],
  ["Label", "What is known of a token or its document, such as its domain. Tokens without one are unlabelled, which is not zero."],
];

/** @returns {HTMLDialogElement} */
export function helpDialog() {
  const dialog = h("dialog", { class: "help", "aria-labelledby": "help-title" },
    h("header", null, h("h2", { id: "help-title" }, "Keys and words"), h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    h("h3", null, "Keys"),
    h("dl", { class: "keys" }, KEYS.map(([keys, meaning]) => h("div", null, h("dt", null, keys.map((key) => h("kbd", null, key))), h("dd", null, meaning)))),
    h("h3", null, "With the mouse"),
    h("p", null, "Hover a token to ring its point in the map, and the other way round. Click an expert anywhere (a cell, a bar, a button) and every view shows it. Drag in the map to lasso points, scroll to zoom, double-click to see all again. On the tracks of a run, drag to look at another step."),
    h("h3", null, "Words"),
    h("dl", { class: "words" }, WORDS.map(([word, meaning]) => h("div", null, h("dt", null, word), h("dd", null, meaning)))));
  const about = h("p", { class: "muted small-text about" });
  dialog.append(about);
  api.info().then((info) => { about.textContent = `moescope ${info.version}${info.device ? ` on ${info.device}` : ""}; everything is kept in ${info.home}`; }, () => undefined);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  return dialog;
}
