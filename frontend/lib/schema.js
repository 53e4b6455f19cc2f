/** The configuration's JSON schema as a flat list of settings, and what differs between two configurations. */

/** @import { RunSchema, Setting, SettingKind } from "./types.d.ts" */

/** Settings that name an entry of a registry, with the setting that holds its options. @type {Record<string, [string, string]>} */
const REGISTRIES = {
  "model.router": ["routers", "model.router_config"],
  "expansion.detector": ["detectors", "expansion.detector_config"],
  "expansion.initialiser": ["initialisers", "expansion.initialiser_config"],
  "expansion.acceptor": ["acceptors", "expansion.acceptor_config"],
};
const CORPORA = new Set(["data.spec", "probe.spec"]);
/** Settings that follow from the data, whatever is written; `vocab_size` alone is a router's. */
export const FROM_DATA = new Set(["model.vocab_size", "model.d_input", "model.num_classes", "model.num_values", "vocab_size"]);
/** The groups of the form, in order, with their words; what is no table stands under `run`. @type {[string, string, string][]} */
export const GROUPS = [
  ["model", "Model", "What is trained: its blocks, its experts and the router that chooses among them."],
  ["data", "Data", "What is learned from, and what is held out of it."],
  ["optim", "Optimiser", "How long, how fast, in which batches."],
  ["objectives", "Objectives", "Auxiliary losses beside the model's own, each with a coefficient."],
  ["expansion", "Growth", "Whether experts are added and removed while the model trains, and what decides it."],
  ["probe", "Probe", "The fixed tokens whose routing is traced at every snapshot: the token map."],
  ["run", "Run and logging", "What is written down and how often; the seed."],
];

/** @param {any} part @param {Record<string, any>} defs @returns {any} what a reference stands for, with the words beside it */
function resolved(part, defs) {
  const { $ref, ...own } = part;
  return typeof $ref === "string" ? { ...defs[$ref.split("/").pop() ?? ""], ...own } : part;
}

/** A part that may be null, as the part and whether it may. @param {any} part @param {Record<string, any>} defs */
function optional(part, defs) {
  const options = part.anyOf?.map((/** @type {any} */ one) => resolved(one, defs));
  if (!options?.some((/** @type {any} */ one) => one.type === "null")) return { part: resolved(part, defs), none: false };
  const left = options.filter((/** @type {any} */ one) => one.type !== "null");
  return { part: left.length === 1 ? { ...left[0], ...part, anyOf: undefined, title: left[0].title } : { ...part, anyOf: left }, none: true };
}

/** @param {string} key @param {any} part @returns {SettingKind} */
function kindOf(key, part) {
  if (key in REGISTRIES) return "registry";
  if (CORPORA.has(key)) return "corpus";
  if (key === "objectives") return "objectives";
  if (part.enum) return "choice";
  if (part.type === "array" && part.items?.enum) return "choices";
  if (part.type === "integer" || part.type === "number" || part.type === "boolean" || part.type === "string") return part.type;
  return "plain";
}

/**
 * Every setting of a schema's table, those of tables within included.
 * @param {any} table @param {Record<string, any>} defs @param {string} [above] @returns {Setting[]}
 */
export function settingsOf(table, defs, above = "") {
  return Object.entries(table.properties ?? {}).flatMap(([name, raw]) => {
    const key = above + name;
    const { part, none } = optional(raw, defs);
    if (part.properties) return settingsOf(part, defs, `${key}.`).map((one) => (none ? { ...one, within: one.within ?? key, about: one.about ?? String(raw.description ?? part.description ?? "") } : one));
    if (key.endsWith("_config") && Object.values(REGISTRIES).some(([, options]) => options === key)) return [];
    const [registry, options] = REGISTRIES[key] ?? [];
    const group = key === "objectives" ? "objectives" : above ? key.split(".")[0] : "run";
    return [{
      key, name, group, kind: kindOf(key, part), none, help: String(raw.description ?? part.description ?? ""), default: raw.default,
      choices: part.enum ?? part.items?.enum, registry, options, within: undefined, about: undefined,
    }];
  });
}

/** @param {RunSchema} schema @returns {Setting[]} */
export function settings(schema) {
  return settingsOf(schema.schema, schema.schema.$defs ?? {});
}

/** The value at a dotted key. @param {any} config @param {string} key @returns {any} */
export function valueAt(config, key) {
  return key.split(".").reduce((value, part) => value?.[part], config);
}

/** A copy of a configuration with one value put in place; tables on the way are made. @param {any} config @param {string} key @param {unknown} value @returns {any} */
export function withValue(config, key, value) {
  const [head, ...rest] = key.split(".");
  const inner = rest.length ? withValue(config?.[head] ?? {}, rest.join("."), value) : value;
  return { ...config, [head]: inner };
}

/** Whether two plain values say the same, whatever the order of their keys. @param {any} a @param {any} b @returns {boolean} */
export function same(a, b) {
  if (a === b) return true;
  if (a === null || b === null || typeof a !== "object" || typeof b !== "object" || Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].every((key) => same(a[key], b[key]));
}

/**
 * What must be set on top of `base` to get `wanted`, as the interface takes it: dotted keys of settings; a table that
 * is not in `base` at all goes whole, and null takes one away.
 * @param {Setting[]} all @param {any} base @param {any} wanted @returns {Record<string, unknown>}
 */
export function differences(all, base, wanted) {
  /** @type {Record<string, unknown>} */
  const set = {};
  const tables = new Set(all.flatMap((one) => one.within ?? []));
  for (const table of tables) {
    const [was, is] = [valueAt(base, table) ?? null, valueAt(wanted, table) ?? null];
    if ((was === null) !== (is === null)) set[table] = is && short(all, table, is);
  }
  for (const one of all) {
    if (one.within && (one.within in set || !valueAt(wanted, one.within))) continue;
    for (const key of one.options ? [one.key, one.options] : [one.key]) {
      if (!same(valueAt(base, key) ?? null, valueAt(wanted, key) ?? null)) set[key] = valueAt(wanted, key) ?? null;
    }
    if (one.options && one.key in set) set[one.options] = valueAt(wanted, one.options) ?? {};
  }
  return set;
}

/** A table without what stands at its default. @param {Setting[]} all @param {string} table @param {Record<string, unknown>} values */
function short(all, table, values) {
  const defaults = new Map(all.flatMap((one) => [/** @type {[string, unknown]} */ ([one.key, one.default]), ...(one.options ? [/** @type {[string, unknown]} */ ([one.options, {}])] : [])]));
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => !same(value ?? null, defaults.get(`${table}.${name}`) ?? null)));
}

/**
 * The setting that the server's sentence is about and the sentence with its dotted key, or null: sentences begin with the
 * class and field, or with the path.
 * @param {string} sentence @param {RunSchema} schema @param {Setting[]} all @returns {{ key: string, sentence: string } | null}
 */
export function named(sentence, schema, all) {
  const [whole, cls, path] = /^(\w+)\.([\w.]+)/.exec(sentence) ?? [];
  if (!whole || !cls) return null;
  const told = (/** @type {string | null} */ key, /** @type {string} */ dotted) => (key ? { key, sentence: dotted + sentence.slice(whole.length) } : null);
  const known = new Set(all.flatMap((one) => [one.key, one.options ?? one.key]));
  /** @type {(key: string) => string | null} */
  const longest = (key) => (known.has(key) ? key : key.includes(".") ? longest(key.slice(0, key.lastIndexOf("."))) : null);
  const found = longest(path);
  if (cls === schema.schema.title && found) return told(found, path);
  if (longest(whole)) return told(longest(whole), whole);
  const defs = schema.schema.$defs ?? {};
  for (const [table, raw] of Object.entries(schema.schema.properties ?? {})) {
    const { part } = optional(raw, defs);
    if (part.title === cls || defs[cls]?.title === part.title) return told(longest(`${table}.${path}`), `${table}.${path}`);
  }
  for (const one of all) {
    const options = one.registry ? Object.values(schema.options[one.registry] ?? {}) : [];
    if (one.options && options.some((entry) => entry.schema.title === cls)) return told(one.key, `${one.options}.${path}`);
  }
  return CORPORA.has("data.spec") && Object.values(schema.options.corpora ?? {}).some((entry) => entry.schema.title === cls) ? told("data.spec", whole) : null;
}

/** A corpus and its options, from a specification; null for a path, a `hub:` name or anything else that is not in the list. @param {any} spec @param {Record<string, unknown>} corpora */
export function corpusOf(spec, corpora) {
  if (typeof spec === "string" && spec in corpora) return { corpus: spec, options: /** @type {Record<string, any>} */ ({}) };
  if (spec !== null && typeof spec === "object" && typeof spec.corpus === "string" && spec.corpus in corpora) {
    const { corpus, ...options } = spec;
    return { corpus: /** @type {string} */ (corpus), options };
  }
  return null;
}
