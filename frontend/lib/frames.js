/** Draws what events changed: one thing per animation frame, the one that waited longest first, none while nobody looks. */

/** @typedef {{ redraw: () => Promise<void>, seen: () => boolean }} Drawn */

/** Least time between two drawings of one thing, ms; what is slow to draw rests for as long as it took. */
const PACE = 100;

class Frames {
  constructor() {
    /** Since when each waits. @type {Map<Drawn, number>} */
    this.waiting = new Map();
    /** When each may be drawn again. @type {WeakMap<Drawn, number>} */
    this.next = new WeakMap();
    /** When each was drawn last, and until when it rests. @type {WeakMap<Drawn, number>} */
    this.drawn = new WeakMap();
    /** @type {WeakMap<Drawn, number>} */
    this.rest = new WeakMap();
    this.frame = 0;
    this.timer = 0;
    this.drawing = false;
    document.addEventListener("visibilitychange", () => this.plan(0));
    addEventListener("scroll", () => this.plan(0), { passive: true });
  }

  /** @param {Drawn} drawn @param {number} [pace] least time since it was last drawn, ms */
  ask(drawn, pace = 0) {
    const since = this.waiting.get(drawn);
    const due = (this.drawn.get(drawn) ?? -Infinity) + pace;
    if (since === undefined) this.waiting.set(drawn, performance.now());
    if (since === undefined || due < (this.next.get(drawn) ?? 0)) this.next.set(drawn, Math.max(due, this.rest.get(drawn) ?? 0));
    this.plan(0);
  }

  /** @param {Drawn} drawn */
  forget(drawn) { this.waiting.delete(drawn); }

  /** @param {number} wait ms */
  plan(wait) {
    if (this.frame || this.drawing || !this.waiting.size || document.hidden) return;
    clearTimeout(this.timer);
    if (wait > 16) { this.timer = window.setTimeout(() => this.plan(0), wait); return; }
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.tick(); });
  }

  async tick() {
    const began = performance.now();
    const seen = [...this.waiting.keys()].filter((drawn) => drawn.seen());
    const due = seen.filter((drawn) => (this.next.get(drawn) ?? 0) <= began);
    const first = due.sort((a, b) => (this.waiting.get(a) ?? 0) - (this.waiting.get(b) ?? 0))[0];
    if (first) {
      this.waiting.delete(first);
      this.drawing = true;
      try { await first.redraw(); } finally { this.drawing = false; }
      const ended = performance.now();
      this.drawn.set(first, ended);
      this.rest.set(first, began + Math.max(PACE, 2 * (ended - began)));
    }
    if (!seen.length) return;
    const soonest = Math.min(...seen.filter((drawn) => drawn !== first).map((drawn) => this.next.get(drawn) ?? 0), first ? began + PACE : Infinity);
    this.plan(Math.max(0, soonest - performance.now()));
  }
}

export const frames = new Frames();
