/** Numbers and names as people read them. A missing number is a dash, never a zero. */

/** @param {number | null | undefined} value @param {number} [digits] significant digits */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(Math.max(0, digits - 1));
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** A share as per cent. @param {number | null | undefined} value */
export function percent(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const shown = value * 100;
  return `${shown.toFixed(Math.abs(shown) < 9.95 ? 1 : 0)} %`;
}

/** A lift in bits as how many times as often. @param {number | null | undefined} bits */
export function times(bits) {
  if (bits === null || bits === undefined || !Number.isFinite(bits)) return "–";
  const ratio = 2 ** bits;
  return ratio < 0.01 ? "< 0.01×" : `${ratio < 0.095 ? ratio.toFixed(2) : ratio >= 99.5 ? ratio.toFixed(0) : ratio.toPrecision(2)}×`;
}

/** 4,300,000 as 4.3 M. @param {number | null | undefined} value */
export function compact(value) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${size.toFixed(size < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60 ? `${whole % 60} s` : ""}`.trim();
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** A probability of chance as it is reported. @param {number | null | undefined} p */
export function pValue(p) {
  if (p === null || p === undefined) return "–";
  return p < 0.001 ? "< 0.001" : p.toFixed(3);
}

/** @param {string} iso */
export function when(iso) {
  const date = new Date(iso);
  if (!iso || Number.isNaN(date.valueOf())) return "";
  return date.toLocaleString("en", { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}

/** A token's text made visible: white space that nobody would see is drawn. @param {string} text */
export function visible(text) {
  const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return shown.trim() === "" || shown !== shown.trim() ? shown.replaceAll(" ", "␣") : shown;
}

/** "mutual_information" as "Mutual information". @param {string} name */
export function title(name) {
  const words = name.replaceAll("_", " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** @param {number} count @param {string} one @param {string} [many] */
export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
