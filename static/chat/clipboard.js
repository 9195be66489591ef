// Copies text, also where the page is not on https and the clipboard API is missing.

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const box = document.createElement("textarea");
  box.value = text;
  box.className = "off-screen";
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  return done;
}

/** Copy and say so on the button itself for a moment. */
export async function copyFrom(button, text) {
  const done = await copy(text);
  const label = button.dataset.label ?? (button.dataset.label = button.getAttribute("aria-label"));
  const said = done ? "Copied" : "Copying failed: select the text and press Ctrl+C";
  button.classList.toggle("is-done", done);
  button.setAttribute("aria-label", said);
  button.title = said;
  setTimeout(() => {
    button.classList.remove("is-done");
    button.setAttribute("aria-label", label);
    button.title = label;
  }, 1600);
}
