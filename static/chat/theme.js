// The theme: the system's until the user picks one; any number of buttons [data-theme-choice] or [data-theme-toggle].

import { lasting } from "./storage.js";

const KEY = "chat.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

const chosen = () => lasting.get(KEY) ?? "system";
const shown = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");

function choose(theme) {
  if (theme === "system") {
    lasting.remove(KEY);
    delete document.documentElement.dataset.theme;
  } else {
    lasting.set(KEY, theme);
    document.documentElement.dataset.theme = theme;
  }
  show();
}

function show() {
  for (const button of document.querySelectorAll("[data-theme-toggle]")) {
    const label = shown() === "dark" ? "Use the light theme" : "Use the dark theme";
    button.setAttribute("aria-label", label);
    button.title = label;
  }
  for (const input of document.querySelectorAll("[data-theme-choice]")) {
    input.checked = input.value === chosen();
  }
}

for (const button of document.querySelectorAll("[data-theme-toggle]")) {
  button.addEventListener("click", () => choose(shown() === "dark" ? "light" : "dark"));
}
for (const input of document.querySelectorAll("[data-theme-choice]")) {
  input.addEventListener("change", () => choose(input.value));
}
system.addEventListener("change", show);
window.addEventListener("storage", (event) => {
  if (event.key === KEY || event.key === null) choose(chosen());
});
show();
