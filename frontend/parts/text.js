/** `<moe-text>`: the text itself, token by token, coloured by what the router did; only what is near the screen exists. */

/** @import { Session, TokenFacts } from "../lib/session.js" */
/** @import { TokenWindow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { debounce, fill, h } from "../lib/dom.js";
import { CHUNK, factsOf } from "../lib/session.js";
import { theme } from "../lib/theme.js";
import { fail } from "../lib/toast.js";
import { TokenCard } from "./token-card.js";

/** @typedef {{ start: number, count: number, element: HTMLElement, filled: number | null, window: TokenWindow | null }} Chunk */

export class MoeText extends HTMLElement {
  /** @type {Session | null} */
  #session = null;
  /** @type {Chunk[]} */
  #chunks = [];
  #sheet = new CSSStyleSheet();
  #card = new TokenCard();
  #ears = new AbortController();
  /** @type {IntersectionObserver | null} */
  #near = null;
  #hovered = -1;

  /** @param {Session} session */
  set session(session) {
    this.#session = session;
    if (this.isConnected) this.#start();
  }

  connectedCallback() {
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, this.#sheet];
    if (this.#session) this.#start();
  }

  disconnectedCallback() {
    this.#ears.abort();
    this.#near?.disconnect();
    this.#card.hide();
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((sheet) => sheet !== this.#sheet);
  }

  #start() {
    const session = this.#session;
    if (!session) return;
    this.#ears.abort();
    this.#ears = new AbortController();
    const { signal } = this.#ears;
    this.tabIndex = 0;
    this.setAttribute("role", "group");
    this.setAttribute("aria-label", "Tokens of the text. Arrow keys move the selected token.");
    const { tokens } = session.trace;
    this.#chunks = Array.from({ length: Math.ceil(tokens / CHUNK) }, (_, i) => {
      const start = i * CHUNK;
      const element = h("div", { class: "chunk", "data-chunk": i });
      element.style.minHeight = `${Math.ceil((tokens - start > CHUNK ? CHUNK : tokens - start) * 1.6)}px`;
      return { start, count: Math.min(CHUNK, tokens - start), element, filled: null, window: null };
    });
    fill(this, this.#chunks.map((chunk) => chunk.element));
    this.#near?.disconnect();
    this.#near = new IntersectionObserver((seen) => seen.forEach((entry) => this.#cross(entry)), { root: this, rootMargin: "700px 0px" });
    this.#chunks.forEach((chunk) => this.#near?.observe(chunk.element));

    session.addEventListener("change", () => this.#refresh(), { signal });
    session.addEventListener("hits", () => this.#decorate(), { signal });
    session.addEventListener("hover", (event) => this.#hoverFrom(/** @type {CustomEvent} */ (event)), { signal });
    theme.addEventListener("change", () => this.#colours(), { signal });
    this.addEventListener("pointerover", (event) => this.#over(event), { signal });
    this.addEventListener("pointerleave", () => { this.#card.hide(); session.hover(null, this); }, { signal });
    this.addEventListener("scroll", () => this.#card.hide(), { signal });
    this.addEventListener("click", (event) => {
      const token = tokenOf(event.target);
      if (token !== null) session.select({ token: token === session.token ? null : token });
    }, { signal });
    this.#refresh();
    if (session.token !== null) this.reveal(session.token).catch(fail);
  }

  /** @param {IntersectionObserverEntry} entry */
  #cross(entry) {
    const chunk = this.#chunks[Number(/** @type {HTMLElement} */ (entry.target).dataset.chunk)];
    if (entry.isIntersecting) this.#fill(chunk).catch(fail);
    else if (chunk.filled !== null) {
      chunk.element.style.minHeight = `${chunk.element.offsetHeight}px`;
      chunk.element.replaceChildren();
      chunk.filled = null;
    }
  }

  /** Write a chunk's tokens, or only their colours where the words stand already. @param {Chunk} chunk */
  async #fill(chunk) {
    const session = this.#session;
    if (!session) return;
    const { layer } = session;
    chunk.window = await session.chunk(chunk.start);
    if (session !== this.#session || layer !== session.layer) return;
    if (chunk.filled === null) {
      if (session.trace.kind === "patches") this.#writeImages(chunk.element, chunk.window);
      else this.#writeText(chunk.element, chunk.window);
      chunk.element.style.minHeight = "";
    }
    chunk.filled = layer;
    this.#paint(chunk);
  }

  /** @param {HTMLElement} element @param {TokenWindow} window */
  #writeText(element, window) {
    const starts = new Map(window.documents.map((doc) => [doc.start, doc]));
    const parts = document.createDocumentFragment();
    window.text.forEach((text, i) => {
      const token = window.start + i;
      const doc = starts.get(token);
      if (doc) parts.append(this.#title(doc.index, doc.name));
      parts.append(h("span", { class: "tok", "data-t": token }, this.#session?.trace.kind === "vectors" ? `${token - (starts.get(token)?.start ?? 0)} ` : text.replaceAll("\n", "↵\n")));
    });
    element.replaceChildren(parts);
  }

  /** @param {number} index @param {string} name */
  #title(index, name) {
    const row = this.#session?.document(index);
    const labels = Object.entries(row?.labels ?? {}).filter(([, value]) => value !== null);
    return h("h3", { class: "doc" }, h("span", { class: "doc-name" }, name), labels.map(([label, value]) => h("span", { class: "chip", title: label }, value)));
  }

  /** Images as grids of their patches. @param {HTMLElement} element @param {TokenWindow} window */
  #writeImages(element, window) {
    const session = this.#session;
    if (!session) return;
    const images = h("div", { class: "images" });
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
        grid.append(h("span", { class: "tok", "data-t": window.start + t, style: { "grid-row": Math.floor(at / side) + 1, "grid-column": at % side + 1 } }));
      }
      const labels = Object.values(row?.labels ?? {}).filter((value) => value !== null);
      images.append(h("figure", { class: "image" }, grid, h("figcaption", null, labels.join(", ") || row?.name || `#${doc}`)));
      i = end;
    }
    element.replaceChildren(images);
  }

  /** Set what a token's colour and emphasis depend on, as classes. @param {Chunk} chunk */
  #paint({ element, window }) {
    const session = this.#session;
    if (!session || !window) return;
    const { color, picked, token: selected } = session;
    const hits = new Set(session.hits);
    const codes = window.labels[color];
    for (const span of /** @type {NodeListOf<HTMLElement>} */ (element.querySelectorAll(".tok"))) {
      const token = Number(span.dataset.t);
      const i = token - window.start;
      const experts = window.experts[i];
      const group = color === "expert" ? experts[0] ?? -1 : color === "confidence" ? Math.min(9, Math.floor((window.gates[i][0] ?? 0) * 10)) : codes?.[i] ?? -1;
      let name = `tok c${group} p${experts[0] ?? -1}`;
      for (const expert of experts) if (expert >= 0) name += ` k${expert}`;
      if (window.dropped[i]?.some(Boolean)) name += " dropped";
      if (hits.has(token)) name += " hit";
      if (picked?.has(token)) name += " in";
      if (token === selected) name += " selected";
      if (token === this.#hovered) name += " hover";
      span.className = name;
    }
  }

  #decorate() { this.#chunks.forEach((chunk) => { if (chunk.filled !== null) this.#paint(chunk); }); }

  #refresh() {
    const session = this.#session;
    if (!session) return;
    this.#colours();
    this.classList.toggle("picking", session.picked !== null);
    this.classList.toggle("by-confidence", session.color === "confidence");
    for (const chunk of this.#chunks) {
      if (chunk.filled === null) continue;
      if (chunk.filled === session.layer) this.#paint(chunk);
      else this.#fill(chunk).catch(fail);
    }
  }

  /** The colours as rules: a change of layer or selection touches one style sheet, not thousands of tokens. */
  #colours() {
    const session = this.#session;
    if (!session) return;
    const { color, expert } = session;
    const colours = color === "expert" ? session.palette() : color === "confidence" ? [] : session.trace.label_palette[color] ?? [];
    const rules = colours.map((hex, i) => `moe-text .c${i}{--c:${/^#[0-9a-f]{3,8}$/i.test(hex) ? hex : "gray"}}`);
    if (color === "confidence") for (let i = 0; i < 10; i += 1) rules.push(`moe-text .c${i}{--c:var(--accent);--tint:${5 + i * 6}%}`);
    if (expert !== null) {
      rules.push(`moe-text .tok:not(.k${expert}){--c:transparent;color:var(--faint)}`);
      rules.push(`moe-text .tok.k${expert}:not(.p${expert}){--tint:0%;--c:${session.shownColour(expert)}}`);
      if (color === "expert") rules.push(`moe-text .tok.p${expert}{--c:${session.shownColour(expert)}}`);
    }
    this.#sheet.replaceSync(rules.join("\n"));
  }

  /** @param {PointerEvent} event */
  #over(event) {
    const token = tokenOf(event.target);
    const session = this.#session;
    if (!session) return;
    if (token === null) { this.#card.hide(); session.hover(null, this); return; }
    const facts = this.#facts(token);
    if (facts) this.#card.show(session, facts, /** @type {Element} */ (event.target));
    session.hover(token, this);
  }

  /** @param {number} token @returns {TokenFacts | null} */
  #facts(token) {
    const chunk = this.#chunks[Math.floor(token / CHUNK)];
    return this.#session && chunk?.window ? factsOf(this.#session, chunk.window, token) : null;
  }

  #follow = debounce(120, (/** @type {number} */ token) => { if (token === this.#session?.hovered) this.reveal(token).catch(fail); });

  /** @param {CustomEvent<{ token: number | null, from: object }>} event */
  #hoverFrom({ detail: { token, from } }) {
    this.querySelector(".tok.hover")?.classList.remove("hover");
    this.#hovered = token ?? -1;
    if (token === null) return;
    this.span(token)?.classList.add("hover");
    if (from !== this) this.#follow(token);
  }

  /** @param {number} token @returns {HTMLElement | null} */
  span(token) { return this.querySelector(`.tok[data-t="${token}"]`); }

  /** Scroll so that the token is in sight, writing its chunk first. @param {number} token */
  async reveal(token) {
    const chunk = this.#chunks[Math.floor(token / CHUNK)];
    if (!chunk) return;
    if (chunk.filled === null) {
      this.scrollTo({ top: chunk.element.offsetTop - this.offsetTop - this.clientHeight / 3 });
      await this.#fill(chunk);
    }
    const box = this.span(token)?.getBoundingClientRect();
    const frame = this.getBoundingClientRect();
    if (box && (box.top < frame.top + 24 || box.bottom > frame.bottom - 24)) this.scrollBy({ top: box.top - frame.top - frame.height / 3 });
  }

  /** The token one place or one line further. @param {string} key an arrow key's name @returns {number | null} */
  neighbour(key) {
    const session = this.#session;
    if (!session) return null;
    const last = session.trace.tokens - 1;
    if (session.token === null) return this.#firstInSight();
    if (key === "ArrowLeft") return Math.max(0, session.token - 1);
    if (key === "ArrowRight") return Math.min(last, session.token + 1);
    const down = key === "ArrowDown";
    const from = this.span(session.token)?.getClientRects()[0];
    if (!from) return session.token;
    let span = /** @type {HTMLElement | null} */ (null);
    let best = Infinity;
    for (let t = session.token + (down ? 1 : -1); t >= 0 && t <= last; t += down ? 1 : -1) {
      const next = this.span(t);
      const box = next?.getClientRects()[0];
      if (!next || !box) break;
      const lines = (box.top - from.top) / from.height * (down ? 1 : -1);
      if (lines < 0.5) continue;
      const far = Math.abs(box.left - from.left) + Math.round(lines) * 4000;
      if (far > best + 3000) break;
      if (far < best) { best = far; span = next; }
    }
    return span ? Number(span.dataset.t) : session.token;
  }

  #firstInSight() {
    const frame = this.getBoundingClientRect();
    for (const span of /** @type {NodeListOf<HTMLElement>} */ (this.querySelectorAll(".tok"))) {
      if (span.getBoundingClientRect().top >= frame.top) return Number(span.dataset.t);
    }
    return 0;
  }
}

/** @param {EventTarget | null} target @returns {number | null} */
function tokenOf(target) {
  const span = target instanceof Element ? /** @type {HTMLElement | null} */ (target.closest(".tok")) : null;
  return span ? Number(span.dataset.t) : null;
}

customElements.define("moe-text", MoeText);
