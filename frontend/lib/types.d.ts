/** What travels between the server and the page (docs/contracts.md), and the few Plotly calls that lib/plot.js makes. */

export interface LayerInfo { layer: number; path: string; router: string; num_experts: number; k: number | null; causal?: boolean; alive?: number[] | null }
export interface LabelInfo { name: string; scope: string; values: string[] }
export interface SelfCheck { name: string; passed: boolean; detail: string }

export interface Info { version: string; home: string; device: string | null; samples: string | null; max_upload?: number }

export interface Checkpoint {
  id: string; name: string; origin: "sample" | "upload" | "path" | "run"; family: string; params: number | null;
  d_model: number | null; num_layers: number | null; layers: LayerInfo[]; kind: Kind; size_bytes: number | null;
  created: string; description: string; traces: string[]; problems: string[]; run: string | null; step: number | null;
}
export type Kind = "text" | "patches" | "vectors";

export interface TraceRow {
  id: string; name: string; checkpoint: string | null; run: string | null; step: number | null; origin: string;
  tokens: number; documents: number; kind: Kind; labels: LabelInfo[]; layers: LayerInfo[];
  data: Record<string, unknown>; self_check: SelfCheck[]; created: string;
}
export interface Finding {
  text: string; layer: number; expert: number | null; label: string | null; label_value?: string | null; q?: number | null;
  value: string | number | null; null: number | null; n: number; tokens: number[];
}
export interface TraceDetail extends TraceRow {
  palette: Record<string, string[]>; label_palette: Record<string, string[]>;
  default_layer: number; default_label: string | null; findings: Finding[];
}
export interface Measurement {
  metric: string; layer: number; label: string | null; value: number | null; null: number | null; null_std: number | null;
  z: number | null; p: number | null; interval: [number | null, number | null] | null; n: number; unit: string; tensor: string; note: string | null; null_kind?: string;
}
export interface MetricInfo { name: string; title: string; definition: string; null: string; caveat: string; unit: string; tensor: string; source: string }
export interface TokenWindow {
  start: number; total: number; text: string[]; doc: number[]; experts: number[][]; gates: number[][]; dropped: boolean[][];
  labels: Record<string, number[]>; documents: { index: number; start: number; name: string }[]; in_map: boolean[];
}
export interface DocumentRow { index: number; name: string; start: number; tokens: number; labels: Record<string, string | null> }
export interface Profile { value: string; share: number | null; base: number | null; lift: number | null; count: number }
export interface ExpertCard {
  layer: number; expert: number; load: number; load_null: number; assignments: number; n: number;
  entropy: number | null; mean_gate: number | null;
  top_tokens: { text: string; count: number; share: number; lift: number | null; token: number; of?: number; null?: number | null; significant?: boolean }[];
  contexts: { token: number; before: string; text: string; after: string; gate: number }[];
  labels: Record<string, Profile[]>;
  partners: { expert: number; p: number; null: number | null }[];
}
export interface Picked {
  n: number; total: number;
  layers: { layer: number; experts: { expert: number; share: number; base: number }[] }[];
  labels: Record<string, Profile[]>;
}
export type JobStatus = "queued" | "running" | "done" | "failed" | "cancelled";
export interface Job {
  id: string; kind: "trace" | "train" | "project" | "sweep"; status: JobStatus; stage: string | null; progress: number | null;
  seconds_left: number | null; error: string | null; result: Record<string, unknown> | null; created: string;
}
export type RunStatus = "queued" | "running" | "paused" | "finished" | "stopped" | "failed";
export interface RunRow {
  id: string; name: string; preset: string | null; status: RunStatus;
  step: number; steps: number; created: string; error: string | null; config: Record<string, unknown>;
  snapshots: string[]; checkpoints: string[]; job: string | null;
  fork: { run: string; checkpoint: string; step: number } | null; ahead: number; orphan: boolean; sample: boolean;
}
export interface Slot {
  layer: number; expert: number; parent: number | null; born: number; died: number | null; why: string; end: string | null; answers: string | null;
}
export interface GrowthState { layers: number[]; slots: number | null; alive: Record<string, number[]>; tree: Slot[]; changes: MoeEvent[] }
export type SettingKind = "integer" | "number" | "string" | "boolean" | "choice" | "choices" | "registry" | "corpus" | "objectives" | "plain";
export interface Setting {
  key: string; name: string; group: string; kind: SettingKind; none: boolean; help: string; default: unknown;
  choices?: string[]; registry?: string; options?: string; within?: string; about?: string;
}
export interface RegistryEntry { schema: any; description: string; causal?: boolean; learns?: boolean; grows?: boolean }
export interface RunSchema { schema: any; options: Record<string, Record<string, RegistryEntry>> }
export interface Checked { ok: boolean; error: string | null; config: Record<string, unknown> | null }
export interface Preset { name: string; title: string; description: string; seconds: number | null; config: Record<string, unknown> }
export type SweepStatus = "queued" | "running" | "stopped" | "finished" | "damaged";
export type CellStatus = "waiting" | "running" | "stopped" | "finished" | "failed";
export interface SweepVariant { name: string; label: string; description: string; leaky: boolean }
export interface SweepCell { name: string; variant: string; seed: number; status: CellStatus; step: number; steps: number; error: string | null }
export type Verdict = "holds" | "does not hold" | "undecided";
export interface SweepRow {
  id: string; created: string; name: string; title: string; description: string; status: SweepStatus; seconds: number;
  variants: SweepVariant[]; seeds: number[]; metrics: string[]; reference: string; cells: SweepCell[]; notes: string[];
  job: string | null; error: string | null; verdicts: Record<string, number | undefined>;
}
export interface SweepPreset {
  name: string; id: string; title: string; description: string; seconds: number;
  variants: { name: string; label: string; description: string }[]; seeds: number[]; cells: number; claims: number;
}
export interface SweepMean {
  metric: string; layer: string; variant: string; unit: string; mean: number; low: number | null; high: number | null;
  sd: number | null; n: number; null: number | null;
}
export interface SweepDifference {
  metric: string; layer: string; variant: string; against: string; unit: string; mean: number; low: number | null;
  high: number | null; relative: number | null; n: number;
}
export interface SweepClaim {
  metric: string; layer: string; variant: string; against: string; direction: "lower" | "higher" | "within"; margin: number;
  relative: boolean; paper: string; verdict: Verdict; text: string; mean: number | null; low: number | null; high: number | null;
  n: number; seeds: number[];
}
export interface SweepSummary {
  status: string; reference: string; means: SweepMean[]; differences: SweepDifference[]; claims: SweepClaim[]; notes: string[];
  variants: { name: string; label: string; leaky: boolean; active_params: number | null; active_ratio: number | null; equal_active: boolean | null }[];
}
export interface SweepDetail extends SweepRow { curves: string[]; frontier: boolean; palette: Record<string, string>; summary: SweepSummary }
export interface Source { id: string; description: string; kind: Kind; synthetic: boolean; schema: Record<string, unknown> }
export interface MoeEvent { id: number; run: string; step: number; kind: string; payload: Record<string, unknown>; time: number }

export interface Grow { kind: string; trace: number; x: string; y: string; smooth?: number }
export interface FigureMeta {
  moescope: number; name: string; layer: number | null; title: string; caption: string;
  shown?: number | null; total?: number | null; note?: string | null; grow?: Grow[]; again?: string[]; track?: boolean;
}
export type Role = "tokens" | "cells" | "label_cells" | "bars" | "curve" | "step_cells" | "marks" | "flow" | "blank";
export interface TraceMeta { role?: Role; group?: { expert?: number; label?: string; value?: string }; x?: string; y?: string; label?: string; experts?: number[] }

/** A Plotly trace or layout is a wide open record; what the page reads of it is narrowed where it is read. */
export interface PlotTrace { [key: string]: any; type?: string; meta?: TraceMeta; x?: any; y?: any; z?: any; customdata?: any }
export interface FigureJson { data: PlotTrace[]; layout: { [key: string]: any; meta: FigureMeta } }

interface Axis { l2p(value: number): number; p2l(pixel: number): number; tickvals?: unknown[]; ticktext?: unknown[]; d2p?(value: any): number; r2p?(value: any): number; _offset: number; _length: number; _categories?: string[] }
export interface GraphDiv extends HTMLDivElement {
  data: PlotTrace[];
  layout: { [key: string]: any };
  _fullLayout: { xaxis: Axis; yaxis: Axis; [key: string]: any };
  on(event: string, handler: (event: any) => void): void;
  removeAllListeners(event?: string): void;
}
export interface PlotlyModule {
  newPlot(el: HTMLElement, data: PlotTrace[], layout: object, config: object): Promise<GraphDiv>;
  react(el: HTMLElement, data: PlotTrace[], layout: object, config: object): Promise<GraphDiv>;
  restyle(el: HTMLElement, update: object, traces?: number[]): Promise<GraphDiv>;
  relayout(el: HTMLElement, update: object): Promise<GraphDiv>;
  extendTraces(el: HTMLElement, update: object, traces: number[]): Promise<GraphDiv>;
  purge(el: HTMLElement): void;
  Plots: { resize(el: HTMLElement): Promise<void> };
}

declare global {
  var Plotly: PlotlyModule;
  interface HTMLElementTagNameMap {
    "moe-figure": import("../parts/figure.js").MoeFigure;
  }
}
