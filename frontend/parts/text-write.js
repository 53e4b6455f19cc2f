/** How a window of tokens becomes elements, and what gives them their colours. */

/** @import { Session } from "../lib/session.js" */
/** @import { TokenWindow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { h } from "../lib/dom.js";

/** @param {Session} session @param {HTMLElement} element @param {TokenWindow} window */
export function write(session, element, window) {
  element.replaceChildren(session.trace.kind === "patches" ? images(session, window) : text(session, window));
}

/** @param {Session} session @param {TokenWindow} window */
function text(session, window) {
  const starts = new Map(window.documents.map((doc) => [doc.start, doc]));
  const parts = document.createDocumentFragment();
  window.text.forEach((words, i) => {
    const token = window.start + i;
    const doc = starts.get(token);
    if (doc && session.trace.kind === "vectors" && session.document(doc.index)?.tokens === 1) {
      parts.append(h("span", { class: "tok", "data-t": token }, ` ${doc.name} `), " ");
      return;
    }
    if (doc) parts.append(title(session, doc.index, doc.name));
    const shown = session.trace.kind === "vectors" ? `${token - (session.document(window.doc[i])?.start ?? 0)} ` : words.replaceAll("\n", "↵\n");
    parts.append(h("span", { class: "tok", "data-t": token }, shown));
  });
  return parts;
}

/** @param {Session} session @param {number} index @param {string} name */
function title(session, index, name) {
  const labels = Object.entries(session.document(index)?.labels ?? {}).filter(([, value]) => value !== null);
  return h("h3", { class: "doc" }, h("span", { class: "doc-name" }, name), labels.map(([label, value]) => h("span", { class: "chip", title: label }, value)));
}

/** Images as grids of their patches. @param {Session} session @param {TokenWindow} window */
function images(session, window) {
  const all = h("div", { class: "images" });
  let i = 0;
  while (i < window.text.length) {
    const doc = window.doc[i];
    let end = i;
    while (end < window.text.length && window.doc[end] === doc) end += 1;
    const row = session.document(doc);
    const side = Math.max(1, Math.round(Math.sqrt(row?.tokens ?? end - i)));
    const offset = window.start + i - (row?.start ?? window.start + i);
    const grid = h("div", { class: "patches", style: { "--side": side, "background-image": `url("${api.imageUrl(session.trace.id, doc)}")` } });
    for (let t = i; t < end; t += 1) {
      const at = offset + t - i;
      grid.append(h("span", { class: "tok", "data-t": window.start + t, style: { "grid-row": Math.floor(at / side) + 1, "grid-column": (at % side) + 1 } }));
    }
    const labels = Object.values(row?.labels ?? {}).filter((value) => value !== null);
    all.append(h("figure", { class: "image" }, grid, h("figcaption", { title: row?.name ?? "" }, labels.join(", ") || row?.name || `#${doc}`)));
    i = end;
  }
  return all;
}

/**
 * The colours as rules: a change of layer or selection touches one style sheet, not thousands of tokens.
 * @param {Session} session @returns {string}
 */
export function rules(session) {
  const { color, expert } = session;
  const colours = color === "expert" ? session.palette() : color === "confidence" ? [] : session.trace.label_palette[color] ?? [];
  const all = colours.map((hex, i) => `moe-text .c${i}{--c:${/^#[0-9a-f]{3,8}$/i.test(hex) ? hex : "gray"}}`);
  if (color === "confidence") for (let i = 0; i < 10; i += 1) all.push(`moe-text .c${i}{--c:var(--accent);--tint:${Math.round(((i + 0.5) / 10) ** 2 * 85)}%}`);
  if (expert !== null) {
    const own = session.shownColour(expert);
    all.push(`moe-text .tok:not(.k${expert}){--c:transparent;color:var(--faint)}`);
    all.push(`moe-text .tok.k${expert}:not(.p${expert}){--tint:0%;--c:${own}}`);
    all.push(`moe-text .patches .tok.k${expert}:not(.p${expert}){box-shadow:inset 0 0 0 2px ${own}}`);
    if (color === "expert") all.push(`moe-text .tok.p${expert}{--c:${own}}`);
  }
  return all.join("\n");
}
