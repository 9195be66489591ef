// What a key press in a text box means. Knows that an input method's Enter picks a word and sends nothing.

/** Enter alone, outside of composing (229 is what older engines report while an input method is open). */
export function isSubmit(event) {
  return event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey
    && !event.isComposing && event.keyCode !== 229;
}

export function isCancel(event) {
  return event.key === "Escape" && !event.isComposing && event.keyCode !== 229;
}

/** Make a text box as high as its text; CSS holds the limit. */
export function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}
