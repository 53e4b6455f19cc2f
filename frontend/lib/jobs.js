/** What the server is working on, kept up to date by the event stream; it survives a reload because the server keeps it. */

/** @import { Job } from "./types.d.ts" */

import { api } from "./api.js";
import { stream } from "./stream.js";

/** @param {Job} job */
export const isActive = (job) => job.status === "queued" || job.status === "running";

/** Fires `change`. */
class Jobs extends EventTarget {
  constructor() {
    super();
    /** @type {Map<string, Job>} */
    this.all = new Map();
    stream.listen((event) => {
      if (event.kind === "job") this.put(/** @type {Job} */ (/** @type {unknown} */ (event.payload)));
    });
    stream.addEventListener("status", () => { if (stream.status === "live") this.refresh().catch(() => undefined); });
  }

  /** Ask for what is running; ask again about jobs that seem to run but are no longer listed. */
  async refresh() {
    const active = await api.activeJobs();
    const listed = new Set(active.map((job) => job.id));
    const gone = [...this.all.values()].filter((job) => isActive(job) && !listed.has(job.id));
    active.forEach((job) => this.put(job));
    for (const job of gone) this.put(await api.job(job.id));
  }

  /** @param {Job} job */
  put(job) {
    this.all.set(job.id, { ...this.all.get(job.id), ...job });
    this.dispatchEvent(new Event("change"));
  }

  /** @param {string} id */
  forget(id) {
    this.all.delete(id);
    this.dispatchEvent(new Event("change"));
  }

  /**
   * Wait until a job has ended; `follow` hears of every change until then.
   * @param {string} id @param {(job: Job) => void} [follow] @param {AbortSignal} [signal] @returns {Promise<Job>}
   */
  wait(id, follow, signal) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const job = this.all.get(id);
        if (!job) return;
        follow?.(job);
        if (isActive(job)) return;
        this.removeEventListener("change", look);
        resolve(job);
      };
      signal?.addEventListener("abort", () => {
        this.removeEventListener("change", look);
        reject(new DOMException("given up", "AbortError"));
      });
      this.addEventListener("change", look);
      api.job(id).then((job) => this.put(job), reject);
    });
  }
}

export const jobs = new Jobs();
