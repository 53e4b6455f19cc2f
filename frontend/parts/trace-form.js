/** `<moe-trace-form>`: run pasted text, or one of the sources, through a checkpoint; ends on the new trace. */

/** @import { Checkpoint, Job, Source } from "../lib/types.d.ts" */

import { api } from "../lib/api.js";
import { fill, h, tip } from "../lib/dom.js";
import { duration } from "../lib/format.js";
import { jobs } from "../lib/jobs.js";
import { state } from "../lib/state.js";
import { fail, toast } from "../lib/toast.js";

let forms = 0;

export class MoeTraceForm extends HTMLElement {
  /** @param {Pick<Checkpoint, "id" | "name" | "kind">} checkpoint */
  async open(checkpoint) {
    const id = `trace-form-${++forms}`;
    const isText = checkpoint.kind === "text";
    const sources = (await api.sources()).filter((source) => source.kind === checkpoint.kind && source.id !== "text");
    const text = h("textarea", { id: `${id}-text`, rows: 4, maxLength: 500000, placeholder: "Paste a text here, e.g. code and prose, and see which experts read it.", "aria-label": "Your text" });
    const source = h("select", { id: `${id}-source` }, isText && h("option", { value: "" }, "my own text (above)"), sources.map((item) => h("option", { value: item.id }, item.id)));
    const about = h("p", { class: "muted small-text" });
    const tokens = h("input", { id: `${id}-tokens`, type: "number", min: "16", max: "1000000", step: "1", value: "4000", inputMode: "numeric" });
    const start = h("button", { type: "submit", class: "primary" }, "Trace it");
    const progress = h("div", { class: "form-progress", role: "status" });
    const describe = () => {
      const chosen = sources.find((item) => item.id === source.value);
      about.textContent = chosen ? describeSource(chosen) : "";
      text.disabled = Boolean(chosen);
    };
    source.addEventListener("change", describe);
    const submit = async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      const own = !source.value;
      if (own && !text.value.trim()) { toast("Paste some text first, or choose a source.", { kind: "error" }); text.focus(); return; }
      if (!tokens.reportValidity()) return;
      start.disabled = true;
      try {
        const wanted = own ? { text: text.value } : { source: source.value };
        const { job } = await api.startTrace({ checkpoint: checkpoint.id, tokens: Number(tokens.value), ...wanted });
        await this.follow(job, progress);
      } catch (error) {
        fill(progress);
        fail(error);
      } finally {
        start.disabled = false;
      }
    };
    fill(this, h("form", { class: "trace-form", onsubmit: submit },
      isText && text,
      h("div", { class: "form-row" },
        h("label", { for: `${id}-source` }, isText ? "or take" : "Source"), source,
        h("label", { for: `${id}-tokens` }, "at most"), tokens, h("span", null, checkpoint.kind === "patches" ? "patches" : checkpoint.kind === "vectors" ? "vectors" : "tokens"),
        tip("Tracing runs the text through the model once and writes down every routing decision. It costs one forward pass."), start),
      about, progress));
    describe();
  }

  /** @param {string} id @param {HTMLElement} progress */
  async follow(id, progress) {
    const bar = h("progress", { max: 1 });
    const words = h("span", null, "Waiting for its turn…");
    fill(progress, words, bar, h("button", { type: "button", class: "small", onclick: () => api.cancelJob(id).catch(fail) }, "Cancel"));
    const job = await jobs.wait(id, (/** @type {Job} */ now) => {
      const left = duration(now.seconds_left);
      words.textContent = `${now.stage || "Waiting for its turn…"}${left ? `, ${left} left` : ""}`;
      if (now.progress !== null) bar.value = now.progress;
    });
    fill(progress);
    if (job.status === "failed") toast(job.error ?? "The trace failed without a reason.", { kind: "error" });
    else if (job.status === "cancelled") toast("The trace was cancelled.");
    else if (typeof job.result?.trace === "string" && this.isConnected) {
      this.dispatchEvent(new Event("traced"));
      state.go("inspect", job.result.trace);
      scrollTo(0, 0);
    }
  }
}

/** @param {Source} source */
function describeSource(source) {
  return `${source.description}${source.synthetic ? " Synthetic data." : ""}`;
}

customElements.define("moe-trace-form", MoeTraceForm);
