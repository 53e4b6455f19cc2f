/** Light, dark, or what the system says; kept in this browser. Fires `change` when the page's colours have changed. */

const KEY = "moescope-theme";
/** @typedef {"system" | "light" | "dark"} Theme */

class Themes extends EventTarget {
  constructor() {
    super();
    const kept = localStorage.getItem(KEY);
    /** @type {Theme} */
    this.choice = kept === "light" || kept === "dark" ? kept : "system";
    this.apply();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.dispatchEvent(new Event("change")));
  }

  /** @param {Theme} choice */
  set(choice) {
    this.choice = choice;
    localStorage.setItem(KEY, choice);
    this.apply();
    this.dispatchEvent(new Event("change"));
  }

  apply() {
    if (this.choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.choice;
  }
}

export const theme = new Themes();

/** The value a colour variable of style.css has now. @param {string} name */
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
