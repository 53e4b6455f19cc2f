/** `<moe-text>`: the text itself, token by token, coloured by what the router did; only what is near the screen exists. */

/** @import { Session, TokenFacts } from "../lib/session.js" */
/** @import { TokenWindow } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { debounce, fill, h } from "../lib/dom.js";
import { CHUNK, factsOf } from "../lib/session.js";
import { theme } from "../lib/theme.js";
import { fail } from "../lib/toast.js";
import { rules, write } from "./text-write.js";
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
      write(session, chunk.element, chunk.window);
      chunk.element.style.minHeight = "";
    }
    chunk.filled = layer;
    this.#paint(chunk);
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

  #colours() { if (this.#session) this.#sheet.replaceSync(rules(this.#session)); }

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

  /**
   * Scroll so that the token is in sight. Its chunk and those beside are written first; what is written above it later
   * may push it away, so it is looked at again until it stays.
   * @param {number} token
   */
  async reveal(token) {
    const at = Math.floor(token / CHUNK);
    const aim = ++this.#aim;
    if (!this.#chunks[at]) return;
    for (let look = 0, stayed = 0; look < 12 && stayed < 2; look += 1) {
      if (this.#chunks[at].filled === null) {
        this.scrollTo({ top: this.#chunks[at].element.offsetTop - this.offsetTop - this.clientHeight / 3 });
        await Promise.all(this.#chunks.slice(Math.max(0, at - 1), at + 2).map((chunk) => this.#fill(chunk)));
      }
      if (aim !== this.#aim || !this.isConnected) return;
      const box = this.span(token)?.getBoundingClientRect();
      const [top, bottom] = this.#seen();
      if (box && box.top > top + 24 && box.bottom < bottom - 24) stayed += 1;
      else if (box) this.scrollBy({ top: box.top - top - (bottom - top) / 3 });
      await new Promise((resolve) => { requestAnimationFrame(resolve); });
    }
  }

  #aim = 0;

  /** The part of the text that is on the screen, or all of it where that is hardly anything. @returns {[number, number]} */
  #seen() {
    const { top, bottom } = this.getBoundingClientRect();
    const [first, last] = [Math.max(top, 90), Math.min(bottom, innerHeight)];
    return last - first > 120 ? [first, last] : [top, bottom];
  }

  /** Where none of an expert's tokens is in sight, go to the one it is surest of. @param {number} expert */
  async showSome(expert) {
    const session = this.#session;
    if (!session) return;
    const frame = this.getBoundingClientRect();
    for (const span of this.querySelectorAll(`.tok.p${expert}`)) {
      const box = span.getBoundingClientRect();
      if (box.bottom > frame.top && box.top < frame.bottom) return;
    }
    const { layer } = session;
    const card = await api.expert(session.trace.id, layer, expert);
    if (card.contexts.length && session.layer === layer && session.expert === expert) await this.reveal(card.contexts[0].token);
  }

  /** The token one place or one line further. @param {string} key an arrow key's name @returns {number | null} */
  neighbour(key) {
    const session = this.#session;
    if (!session) return null;
    const last = session.trace.tokens - 1;
    if (session.token === null) return this.firstInSight();
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

  /** @returns {number} the first token that can be read now */
  firstInSight() {
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
