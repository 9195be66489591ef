// The panel with the answer's settings; remembered in this browser. An empty field means the service's own value.

import { lasting } from "./storage.js";

const KEY = "chat.params";
const READ = {
  temperature: Number,
  top_p: Number,
  top_k: (text) => parseInt(text, 10),
  max_tokens: (text) => parseInt(text, 10),
  // Seeds go up to 64 bits; beyond 2^53 JavaScript would send another number than was written.
  seed: (text) => parseInt(text, 10),
  stop: (text) => text.split("\n").map((line) => line.replace(/\r$/, "")).filter(Boolean),
};

export class Params {
  constructor(panel) {
    this.panel = panel;
    this.fields = [...panel.querySelectorAll("[name]")];
    const kept = lasting.get(KEY, {});
    for (const field of this.fields) {
      field.value = kept[field.name] ?? "";
      field.addEventListener("input", () => this.changed());
    }
    panel.querySelector("[data-reset]").addEventListener("click", () => {
      for (const field of this.fields) field.value = "";
      this.changed();
    });
    document.addEventListener("click", (event) => {
      if (panel.open && !panel.contains(event.target)) panel.open = false;
    });
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !panel.open) return;
      panel.open = false;
      panel.querySelector("summary").focus();
    });
    this.mark();
  }

  changed() {
    lasting.set(KEY, Object.fromEntries(this.fields.filter((field) => field.value).map((field) => [field.name, field.value])));
    this.mark();
  }

  mark() {
    this.panel.classList.toggle("is-changed", this.fields.some((field) => field.value));
  }

  /** The settings to send, or null when one is out of its range: then the panel is open and shows which. */
  read() {
    const wrong = this.fields.find((field) => !field.checkValidity());
    if (wrong) {
      this.panel.open = true;
      wrong.reportValidity();
      return null;
    }
    const params = {};
    for (const field of this.fields) if (field.value.trim()) params[field.name] = READ[field.name](field.value);
    return params;
  }
}
