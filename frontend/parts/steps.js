/** Through the text from one token of the selection to the next: lassoed tokens, search hits, or an expert's tokens. */

/** @import { Session } from "../lib/session.js" */
/** @import { MoeText } from "./text.js" */

import { h } from "../lib/dom.js";
import { CHUNK } from "../lib/session.js";
import { fail, toast } from "../lib/toast.js";

/** So many chunks are read in search of an expert's next token before the search is given up. */
const MOST_CHUNKS = 60;

/** @param {Session} session @returns {string | null} what there is to step through, in words */
function target({ picked, expert, hits }) {
  return picked ? "lassoed token" : hits.length ? "match" : expert !== null ? `token of E${expert}` : null;
}

/** @param {Session} session @param {MoeText} text @returns {HTMLElement[]} */
export function stepButtons(session, text) {
  const words = target(session);
  if (words === null) return [];
  const button = (/** @type {number} */ by, /** @type {string} */ sign, /** @type {string} */ which) => h("button", {
    type: "button", class: "icon", "aria-label": `${which} ${words}`, title: `${which} ${words} ( ${by > 0 ? "n" : "N"} )`,
    onclick: () => { stepThrough(session, text, by).catch(fail); },
  }, sign);
  return [button(-1, "‹", "Previous"), button(1, "›", "Next")];
}

/** @param {Session} session @param {MoeText} text @param {number} by */
export async function stepThrough(session, text, by) {
  const words = target(session);
  if (words === null) return;
  const from = session.token ?? text.firstInSight() - (by > 0 ? 1 : 0);
  const list = session.picked ? [...session.picked].sort((a, b) => a - b) : session.hits;
  const next = session.picked || session.hits.length ? inList(list, from, by) : await ofExpert(session, from, by);
  if (next === null) toast(`There is no ${by > 0 ? "further" : "earlier"} ${words} nearby.`);
  else session.select({ token: next });
}

/** The next of a list, round and round. @param {number[]} list @param {number} from @param {number} by */
function inList(list, from, by) {
  if (!list.length) return null;
  return by > 0 ? list.find((token) => token > from) ?? list[0] : list.findLast((token) => token < from) ?? list[list.length - 1];
}

/** The next token whose first choice is the selected expert. @param {Session} session @param {number} from @param {number} by @returns {Promise<number | null>} */
async function ofExpert(session, from, by) {
  const { expert, trace } = session;
  let start = Math.floor(Math.max(0, Math.min(trace.tokens - 1, from + by)) / CHUNK) * CHUNK;
  for (let tried = 0; tried < MOST_CHUNKS && start >= 0 && start < trace.tokens; tried += 1, start += by * CHUNK) {
    const window = await session.chunk(start);
    const mine = window.experts.flatMap((experts, i) => (experts[0] === expert ? [start + i] : []));
    const next = by > 0 ? mine.find((token) => token > from) : mine.findLast((token) => token < from);
    if (next !== undefined) return next;
  }
  return null;
}
