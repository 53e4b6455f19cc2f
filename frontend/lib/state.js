/** The page's whole state lives in the address: `#/VIEW/ID?key=value`. The only module that touches it. */

/** @typedef {{ view: string, id: string | null, params: Record<string, string> }} Route */
/** @typedef {Record<string, string | number | null | undefined>} Patch */

const ORDER = ["layer", "expert", "token", "color", "label", "method", "step", "q", "sel"];

/** @param {string} hash @returns {Route} */
export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view = "", ...rest] = path.split("/").filter(Boolean).map(safeDecode);
  return { view, id: rest.length ? rest.join("/") : null, params: Object.fromEntries(new URLSearchParams(query)) };
}

/** @param {Route} route @returns {string} */
export function format({ view, id, params }) {
  const keys = Object.keys(params).filter((key) => params[key] !== "");
  keys.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const query = new URLSearchParams(keys.map((key) => [key, params[key]])).toString();
  const path = [view, ...(id ? id.split("/") : [])].filter(Boolean).map(encodeURIComponent).join("/");
  return `#/${path}${query ? `?${query}` : ""}`;
}

/** @param {string} part */
function safeDecode(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

/** @param {string} key */
function rank(key) {
  const at = ORDER.indexOf(key);
  return at < 0 ? ORDER.length : at;
}

/** Fires `change` after every change of the address, whoever made it. */
class State extends EventTarget {
  constructor() {
    super();
    this.route = parse(location.hash);
    this.shown = location.hash;
    /** @type {{ key: string, at: number }} */
    this.last = { key: "", at: 0 };
    const moved = () => {
      if (location.hash === this.shown) return;
      this.shown = location.hash;
      this.route = parse(location.hash);
      this.last = { key: "", at: 0 };
      this.dispatchEvent(new Event("change"));
    };
    addEventListener("popstate", moved);
    addEventListener("hashchange", moved);
  }

  /** @param {string} key @returns {string | null} */
  get(key) { return this.route.params[key] ?? null; }

  /** A whole number of the address, or null. @param {string} key */
  int(key) {
    const value = this.get(key);
    return value !== null && /^-?\d+$/.test(value) ? Number(value) : null;
  }

  /**
   * Change some keys; null removes one. A step that a reader would want to go back over is pushed; moves that come in
   * a burst (scrubbing layers, arrows) replace each other.
   * @param {Patch} patch @param {{ push?: boolean }} [how]
   */
  set(patch, { push = true } = {}) {
    const params = { ...this.route.params };
    for (const [key, value] of Object.entries(patch)) {
      if (value === null || value === undefined || value === "") delete params[key];
      else params[key] = String(value);
    }
    const key = Object.keys(patch).sort().join();
    const burst = key === this.last.key && performance.now() - this.last.at < 800;
    this.write({ ...this.route, params }, push && !burst);
    this.last = { key, at: performance.now() };
  }

  /** Open another view. @param {string} view @param {string | null} [id] @param {Patch} [params] @param {{ push?: boolean }} [how] */
  go(view, id = null, params = {}, { push = true } = {}) {
    const kept = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
    this.write({ view, id, params: Object.fromEntries(kept.map(([key, value]) => [key, String(value)])) }, push);
    this.last = { key: "", at: 0 };
  }

  /** @param {Route} route @param {boolean} push */
  write(route, push) {
    const hash = format(route);
    if (hash === this.shown) return;
    history[push ? "pushState" : "replaceState"](null, "", hash);
    this.shown = location.hash;
    this.route = route;
    this.dispatchEvent(new Event("change"));
  }
}

export const state = new State();

/** A set of token indices as a short string for the address: differences, seven bits a byte, base64url. @param {Iterable<number>} tokens */
export function packTokens(tokens) {
  const sorted = [...tokens].sort((a, b) => a - b);
  let packed = "";
  let previous = 0;
  for (const token of sorted) {
    let gap = token - previous;
    previous = token;
    for (; gap > 127; gap = Math.floor(gap / 128)) packed += String.fromCharCode((gap % 128) | 128);
    packed += String.fromCharCode(gap);
  }
  return btoa(packed).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The reverse of `packTokens`; what is not such a string is an empty set. @param {string} text @returns {number[]} */
export function unpackTokens(text) {
  let bytes;
  try { bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/")); } catch { return []; }
  const tokens = [];
  let token = 0;
  let gap = 0;
  let scale = 1;
  for (let i = 0; i < bytes.length; i += 1) {
    const byte = bytes.charCodeAt(i);
    gap += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) { token += gap; tokens.push(token); gap = 0; scale = 1; }
  }
  return tokens;
}
