/** The views: the first part of the address, its element, and its name in the header. */

import { MoeInspect } from "./inspect.js";
import { MoeLibrary } from "./library.js";
import { MoeRun } from "./run.js";

/** @typedef {HTMLElement & { update: () => void, key?: (event: KeyboardEvent) => boolean }} View */

/** @type {Record<string, { title: string, element: new () => View }>} */
export const VIEWS = {
  library: { title: "Library", element: MoeLibrary },
  inspect: { title: "Inspect", element: MoeInspect },
  run: { title: "Run", element: MoeRun },
};

for (const [name, { element }] of Object.entries(VIEWS)) customElements.define(`moe-view-${name}`, element);
