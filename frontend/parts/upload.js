/** `<moe-upload>`: bring a checkpoint: drop or choose a folder, a zip or one safetensors file, or open a path in place. */

/** @import { Given } from "../lib/drop.js" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { chosen, dropped } from "../lib/drop.js";
import { bytes, percent, plural } from "../lib/format.js";
import { toast } from "../lib/toast.js";

/** Fires `added` with the new checkpoint. */
export class MoeUpload extends HTMLElement {
  status = h("div", { class: "upload-status", role: "status" });

  connectedCallback() {
    if (this.firstChild) return;
    const folder = picker({ webkitdirectory: true, multiple: true, "aria-label": "A folder to upload" }, (files) => this.send(files));
    const files = picker({ multiple: true, accept: ".zip,.safetensors,.json", "aria-label": "A zip or a safetensors file to upload" }, (given) => this.send(given));
    const path = h("input", { type: "text", placeholder: "/path/to/a/checkpoint", "aria-label": "Path on this machine", spellcheck: false, autocomplete: "off" });
    const zone = h("div", { class: "drop" },
      h("p", { class: "drop-words" }, h("strong", null, "Drop a checkpoint here"), ": a folder, a zip, or one safetensors file.",
        tip("Ours, or a Hugging Face folder of a Mixture-of-Experts model. Only safetensors are read: pickles (.bin, .pt) are refused because opening them can run code.")),
      h("div", { class: "button-row" },
        h("button", { type: "button", onclick: () => folder.click() }, "Choose a folder"), h("button", { type: "button", onclick: () => files.click() }, "Choose a file"), folder, files),
      h("form", { class: "path-form", onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); this.openPath(path.value.trim()); } },
        h("span", { class: "muted" }, "or open in place"), path, h("button", { type: "submit" }, "Open path")), this.status);
    for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", (event) => { if (!(event.relatedTarget instanceof Node) || !zone.contains(event.relatedTarget)) zone.classList.remove("over"); });
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      if (event.dataTransfer) dropped(event.dataTransfer).then((given) => this.send(given), (error) => this.refused(error));
    });
    fill(this, zone);
  }

  /** @param {Given[]} files */
  async send(files) {
    if (!files.length) { this.refused(new Error("Nothing was chosen: the folder holds no files.")); return; }
    const size = files.reduce((sum, { file }) => sum + file.size, 0);
    const stop = new AbortController();
    const bar = h("progress", { max: 1, value: 0, "aria-label": "Upload" });
    const words = h("span", null, `Sending ${plural(files.length, "file")}, ${bytes(size)}`);
    fill(this.status, words, bar, h("button", { type: "button", class: "small", onclick: () => stop.abort() }, "Cancel"));
    await this.take(api.upload(files, (share) => {
      bar.value = share;
      words.textContent = share < 1 ? `Sending ${plural(files.length, "file")}, ${percent(share)} of ${bytes(size)}` : "Sent; the server is checking it…";
    }, stop.signal));
  }

  /** @param {string} path */
  async openPath(path) {
    if (!path) { this.refused(new Error("Type the path of a folder or a safetensors file on the machine that runs moescope.")); return; }
    fill(this.status, h("span", null, `Opening ${path}…`));
    await this.take(api.openPath(path));
  }

  /** @param {Promise<import("../lib/types.d.ts").Checkpoint>} coming */
  async take(coming) {
    try {
      const checkpoint = await coming;
      fill(this.status);
      toast(`${checkpoint.name} is in the library.`);
      this.dispatchEvent(new CustomEvent("added", { detail: checkpoint }));
    } catch (error) {
      this.refused(error);
    }
  }

  /** The refusal stays beside the drop zone until the next try. @param {unknown} error */
  refused(error) {
    const words = error instanceof Error ? error.message : String(error);
    fill(this.status, h("p", { class: "refusal" }, words), h("button", { type: "button", class: "icon", "aria-label": "Close this message", onclick: () => fill(this.status) }, "×"));
  }
}

/** @param {Record<string, any>} props @param {(files: Given[]) => void} take */
function picker(props, take) {
  const input = h("input", { type: "file", hidden: true, ...props });
  input.addEventListener("change", () => { const files = chosen(input.files); input.value = ""; if (files.length) take(files); });
  return input;
}

customElements.define("moe-upload", MoeUpload);
