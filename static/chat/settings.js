// The settings page: copy a new key, pick a theme, and keep a reload from making the key again.

import "./theme.js";
import { copyFrom } from "./clipboard.js";

const button = document.querySelector("[data-copy-key]");
button?.addEventListener("click", () => copyFrom(button, document.querySelector("[data-key]").textContent.trim()));

if (location.pathname !== "/settings") history.replaceState(null, "", "/settings");
