/** The only module that asks the server over HTTP. Every failure is an ApiError whose message is the server's sentence. */

/** @import * as T from "./types.d.ts" */

export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** @param {string} text @param {number} status @returns {string} */
function sentence(text, status) {
  if (status === 401) return "This page has lost its key: open the address that moescope printed when it started (it holds ?token=…).";
  try {
    const detail = JSON.parse(text).detail;
    if (typeof detail === "string") return detail;
    if (Array.isArray(detail)) return detail.map((item) => item.msg ?? String(item)).join("; ");
  } catch { /* not JSON: said below */ }
  return `The server answered ${status} and gave no reason.`;
}

/**
 * @param {string} method @param {string} path @param {{ json?: unknown, signal?: AbortSignal }} [options]
 * @returns {Promise<{ status: number, body: any }>}
 */
async function request(method, path, { json, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      credentials: "same-origin",
      headers: json === undefined ? { Accept: "application/json" } : { "Content-Type": "application/json", Accept: "application/json" },
      body: json === undefined ? undefined : JSON.stringify(json),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The moescope server does not answer; is it still running?", 0);
  }
  const text = await response.text();
  if (!response.ok) throw new ApiError(sentence(text, response.status), response.status);
  return { status: response.status, body: text ? JSON.parse(text) : null };
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
const get = async (path, signal) => (await request("GET", path, { signal })).body;
/** @param {string} path @param {unknown} [json] @returns {Promise<any>} */
const post = async (path, json = {}) => (await request("POST", path, { json })).body;
/** @param {string} path @returns {Promise<void>} */
const remove = async (path) => { await request("DELETE", path); };

/** @param {Record<string, string | number | null | undefined>} values */
function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([key, value]) => [key, String(value)]))}` : "";
}

/** Answers about traces never change, so the newest sixty are kept. @type {Map<string, Promise<any>>} */
const kept = new Map();

/** @param {string} path @returns {Promise<any>} */
function keep(path) {
  let answer = kept.get(path);
  if (answer) kept.delete(path);
  else {
    answer = request("GET", path).then(({ status, body }) => {
      if (status !== 200) kept.delete(path);
      return status === 202 ? { job: body.job } : body;
    });
    answer.catch(() => kept.delete(path));
  }
  kept.set(path, answer);
  if (kept.size > 60) kept.delete(/** @type {string} */ (kept.keys().next().value));
  return answer;
}

/** @param {string} part */
const id = (part) => encodeURIComponent(part);

export const api = {
  /** @returns {Promise<T.Info>} */
  info: () => get("/api/info"),

  /** @returns {Promise<T.Checkpoint[]>} */
  checkpoints: () => get("/api/checkpoints"),
  /** @param {string} path @returns {Promise<T.Checkpoint>} */
  openPath: (path) => post("/api/checkpoints/open", { path }),
  /** @param {string} checkpoint */
  deleteCheckpoint: (checkpoint) => remove(`/api/checkpoints/${id(checkpoint)}`),

  /** @returns {Promise<T.TraceRow[]>} */
  traces: () => get("/api/traces"),
  /** @param {string} trace @returns {Promise<T.TraceDetail>} */
  trace: (trace) => keep(`/api/traces/${id(trace)}`),
  /** @param {string} trace */
  deleteTrace: (trace) => remove(`/api/traces/${id(trace)}`),
  /** @param {string} trace @param {number} layer @returns {Promise<T.Measurement[]>} */
  metrics: (trace, layer) => keep(`/api/traces/${id(trace)}/metrics${query({ layer })}`),
  /** @param {string} trace @param {number} layer @param {number} start @param {number} count @returns {Promise<T.TokenWindow>} */
  tokens: (trace, layer, start, count) => keep(`/api/traces/${id(trace)}/tokens${query({ layer, start, count })}`),
  /** @param {string} trace @returns {Promise<T.DocumentRow[]>} */
  documents: (trace) => keep(`/api/traces/${id(trace)}/documents`),
  /** @param {string} trace @param {number} layer @param {number} expert @returns {Promise<T.ExpertCard>} */
  expert: (trace, layer, expert) => keep(`/api/traces/${id(trace)}/experts/${layer}/${expert}`),
  /** Tokens of the map that went to an expert. @param {string} trace @param {number} layer @param {number} expert @returns {Promise<{ first: number[], other: number[] }>} */
  expertTokens: (trace, layer, expert) => keep(`/api/traces/${id(trace)}/experts/${layer}/${expert}/tokens`),
  /** @param {string} trace @param {string} q @param {number} limit @returns {Promise<{ matches: number[], total: number }>} */
  search: (trace, q, limit) => keep(`/api/traces/${id(trace)}/search${query({ q, limit })}`),
  /** @param {string} trace @param {number[]} tokens @returns {Promise<T.Picked>} */
  picked: (trace, tokens) => post(`/api/traces/${id(trace)}/selection`, { tokens }),
  /** @param {string} trace @param {number} doc */
  imageUrl: (trace, doc) => `/api/traces/${id(trace)}/image/${doc}.png`,

  /**
   * A figure of a trace, a run or a sweep; `{job}` while its projection is computed.
   * @param {"traces" | "runs" | "sweeps"} owner @param {string} of @param {string} name
   * @param {Record<string, string | number | null | undefined>} options
   * @returns {Promise<T.FigureJson | { job: string }>}
   */
  figure: (owner, of, name, options) => {
    const path = `/api/${owner}/${id(of)}/figures/${id(name)}${query(options)}`;
    return owner === "traces" ? keep(path) : get(path);
  },
  /** @param {{ checkpoint: string, source?: string, text?: string, tokens?: number, name?: string }} wanted @returns {Promise<{ job: string }>} */
  startTrace: (wanted) => post("/api/traces", wanted),

  /** @returns {Promise<T.RunRow[]>} */
  runs: () => get("/api/runs"),
  /** @param {string} run @returns {Promise<T.RunRow>} */
  run: (run) => get(`/api/runs/${id(run)}`),
  /** @param {{ preset?: string, set?: Record<string, unknown>, name?: string, fork?: string }} wanted a preset, or a checkpoint to go on from @returns {Promise<{ run: string, job: string }>} */
  startRun: (wanted) => post("/api/runs", { set: {}, ...wanted }),
  /** What starting would do; nothing is started. @param {{ preset?: string, set?: Record<string, unknown>, fork?: string }} wanted @returns {Promise<T.Checked>} */
  checkRun: (wanted) => post("/api/runs/check", { set: {}, ...wanted }),
  /** @returns {Promise<T.RunSchema>} */
  runSchema: () => keep("/api/schema/run"),
  /** @param {string} run @param {{ kind: string, layer?: number, expert?: number }} wanted @returns {Promise<{ order: string }>} */
  order: (run, wanted) => post(`/api/runs/${id(run)}/orders`, wanted),
  /** @param {string} run @param {number | null} [layer] @returns {Promise<T.GrowthState>} */
  growth: (run, layer) => get(`/api/runs/${id(run)}/growth${query({ layer })}`),
  /** @param {string} run */
  stopRun: (run) => post(`/api/runs/${id(run)}/stop`),
  /** @param {string} run */
  resumeRun: (run) => post(`/api/runs/${id(run)}/resume`),
  /** @param {string} run */
  deleteRun: (run) => remove(`/api/runs/${id(run)}`),
  /** @param {string} run @param {{ after?: number, kind?: string, limit?: number }} which @returns {Promise<T.MoeEvent[]>} */
  events: (run, which) => get(`/api/runs/${id(run)}/events${query(which)}`),
  /** @returns {Promise<T.Preset[]>} */
  presets: () => get("/api/presets"),

  /** @returns {Promise<{ sweeps: T.SweepRow[], presets: T.SweepPreset[] }>} */
  sweeps: () => get("/api/sweeps"),
  /** @param {string} sweep @returns {Promise<T.SweepDetail>} */
  sweep: (sweep) => get(`/api/sweeps/${id(sweep)}`),
  /** @param {{ preset: string, seeds?: number[], set?: Record<string, string> }} wanted @returns {Promise<{ sweep: string, job: string | null }>} */
  startSweep: (wanted) => post("/api/sweeps", wanted),
  /** @param {string} sweep */
  stopSweep: (sweep) => post(`/api/sweeps/${id(sweep)}/stop`),
  /** @param {string} sweep */
  resumeSweep: (sweep) => post(`/api/sweeps/${id(sweep)}/resume`),
  /** @param {string} sweep */
  deleteSweep: (sweep) => remove(`/api/sweeps/${id(sweep)}`),
  /** Where the tidy table is downloaded. @param {string} sweep */
  tableUrl: (sweep) => `/api/sweeps/${id(sweep)}/table.csv`,

  /** What each measure is, in words. @returns {Promise<T.MetricInfo[]>} */
  metricInfo: () => keep("/api/metrics"),
  /** @returns {Promise<T.Source[]>} */
  sources: () => get("/api/sources"),

  /** @returns {Promise<T.Job[]>} */
  activeJobs: () => get("/api/jobs?active=1"),
  /** @param {string} job @returns {Promise<T.Job>} */
  job: (job) => get(`/api/jobs/${id(job)}`),
  /** @param {string} job */
  cancelJob: (job) => post(`/api/jobs/${id(job)}/cancel`),

  upload,
};

/**
 * Send files, each under its path inside the dropped folder, and tell how much has gone.
 * @param {{ path: string, file: File }[]} files @param {(share: number) => void} progress @param {AbortSignal} [signal]
 * @returns {Promise<T.Checkpoint>}
 */
function upload(files, progress, signal) {
  const form = new FormData();
  for (const { path, file } of files) form.append("files", file, path);
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", "/api/checkpoints/upload");
    sending.upload.addEventListener("progress", (event) => progress(event.total ? event.loaded / event.total : 0));
    sending.addEventListener("load", () => {
      if (sending.status >= 200 && sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(new ApiError(sentence(sending.responseText, sending.status), sending.status));
    });
    sending.addEventListener("error", () => reject(new ApiError("The upload broke off: the server closed the connection.", 0)));
    sending.addEventListener("abort", () => reject(new ApiError("The upload was cancelled.", 0)));
    signal?.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}
