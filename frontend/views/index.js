/** The views: the first part of the address, its element, and its name in the header; `under` is the one that stands for it there. */

import { MoeCompare } from "./compare.js";
import { MoeInspect } from "./inspect.js";
import { MoeLibrary } from "./library.js";
import { MoeNew } from "./new.js";
import { MoeRun } from "./run.js";
import { MoeSweep } from "./sweep.js";

/** @typedef {HTMLElement & { update: () => void, key?: (event: KeyboardEvent) => boolean }} View */

/** @type {Record<string, { title: string, element: new () => View, under?: string }>} */
export const VIEWS = {
  library: { title: "Library", element: MoeLibrary },
  inspect: { title: "Inspect", element: MoeInspect },
  run: { title: "Run", element: MoeRun },
  new: { title: "New run", element: MoeNew, under: "run" },
  compare: { title: "Compare", element: MoeCompare },
  sweep: { title: "Sweep", element: MoeSweep, under: "compare" },
};

for (const [name, { element }] of Object.entries(VIEWS)) customElements.define(`moe-view-${name}`, element);
