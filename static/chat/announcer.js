// Says things once to screen readers. Tokens are never read out; a finished answer is, whole.

const REGION = "announcer";

export function announce(text) {
  const region = document.getElementById(REGION);
  if (!region) return;
  // Emptied first, so that the same words are read again.
  region.textContent = "";
  requestAnimationFrame(() => { region.textContent = text; });
}
