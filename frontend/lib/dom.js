/** Elements without innerHTML: what comes from the server is text, never markup. */

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * Make an element. `on…` props are listeners, `class`, `data-…`, `aria-…` and names with a dash are attributes,
 * a boolean attribute is set or left out, everything else that the element has is a property.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any> | null} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, v]) => element.style.setProperty(key, String(v)));
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) element.setAttribute(name, String(value));
    else if (name in element) Reflect.set(element, name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/** @param {Element} element @param {(Child | Child[])[]} children */
export function append(element, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace everything in `element`. @param {Element} element @param {...(Child | Child[])} children */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/**
 * An SVG element.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag @param {Record<string, string | number>} [attributes] @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}

/** Text whose `parts between backticks` are code. @param {string} text @returns {Child[]} */
export function coded(text) { return text.split(/`([^`]+)`/).map((part, i) => (i % 2 ? h("code", null, part) : part)); }

let tips = 0;

/** A small (i) with an explanation: shown on hover, focus and tap, read by screen readers. @param {string} text */
export function tip(text) {
  const id = `tip-${++tips}`;
  const bubble = h("span", { class: "tip-bubble", role: "tooltip", id }, text);
  const button = h("button", { class: "tip-button", type: "button", "aria-label": "What is this?", "aria-describedby": id }, "i");
  const place = () => {
    const box = button.getBoundingClientRect();
    const width = Math.min(300, innerWidth - 16);
    bubble.style.maxWidth = `${width}px`;
    bubble.style.left = `${Math.max(8, Math.min(box.left - 12, innerWidth - width - 8))}px`;
    const below = box.bottom + 8 + bubble.offsetHeight < innerHeight;
    bubble.style.top = below ? `${box.bottom + 6}px` : `${box.top - 6 - bubble.offsetHeight}px`;
  };
  button.addEventListener("pointerenter", place);
  button.addEventListener("focus", place);
  button.addEventListener("click", (event) => { event.preventDefault(); place(); });
  return h("span", { class: "tip" }, button, bubble);
}

/** Call `run` once, `wait` ms after the last call. @template {any[]} A @param {number} wait @param {(...a: A) => void} run */
export function debounce(wait, run) {
  let timer = 0;
  return (/** @type {A} */ ...args) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => run(...args), wait);
  };
}
