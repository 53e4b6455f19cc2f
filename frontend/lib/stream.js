/** One event stream for the whole tab: every widget listens here, none opens a connection of its own. */

/** @import { MoeEvent } from "./types.d.ts" */

export const KINDS = [
  "run_started", "calibration", "train", "load", "eval", "drift", "expansion", "acceptance", "prune", "growth_ended", "order", "run_paused",
  "run_unpaused", "snapshot", "checkpoint", "run_resumed", "run_finished", "run_stopped", "run_failed", "job",
];

/** Fires `status` when the connection changes. */
class Stream extends EventTarget {
  constructor() {
    super();
    /** @type {"connecting" | "live" | "lost"} */
    this.status = "connecting";
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {Set<(event: MoeEvent) => void>} */
    this.listeners = new Set();
  }

  /** Open the stream; the browser reconnects by itself and says where it was. @param {number | null} after */
  start(after = null) {
    this.source?.close();
    this.source = new EventSource(after === null ? "/api/events" : `/api/events?after=${after}`);
    this.source.addEventListener("open", () => this.say("live"));
    this.source.addEventListener("error", () => {
      this.say(this.source?.readyState === EventSource.CLOSED ? "lost" : "connecting");
      if (this.source?.readyState === EventSource.CLOSED) window.setTimeout(() => this.start(after), 4000);
    });
    for (const kind of KINDS) {
      this.source.addEventListener(kind, (message) => {
        const event = /** @type {MoeEvent} */ (JSON.parse(message.data));
        after = event.id || after;
        for (const listener of this.listeners) listener(event);
      });
    }
  }

  /** @param {"connecting" | "live" | "lost"} status */
  say(status) {
    if (status === this.status) return;
    this.status = status;
    this.dispatchEvent(new Event("status"));
  }

  /** Settles once the stream is open, or after a while without one: what is fetched after it misses no event. @param {number} most ms */
  whenLive(most) {
    return new Promise((resolve) => {
      if (this.status === "live") resolve(true);
      this.addEventListener("status", () => resolve(this.status === "live"), { once: true });
      window.setTimeout(() => resolve(false), most);
    });
  }

  /** Hear every event until the returned function is called. @param {(event: MoeEvent) => void} listener @returns {() => void} */
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

export const stream = new Stream();
