// One message of the user: its text as it was written, copy, and edit in place.

import { copyFrom } from "./clipboard.js";
import { element, iconButton } from "./element.js";
import { grow, isCancel, isSubmit } from "./keys.js";

export class UserMessage {
  /** `on.edited(message, text)` is called when an edit is sent. */
  constructor({ id, text, isPending = false }, on) {
    this.id = id;
    this.text = text;
    this.on = on;
    this.bubble = element("div", { class: "bubble" }, text);
    this.note = element("p", { class: "note", hidden: true });
    this.copyButton = iconButton("copy", "Copy the message", () => copyFrom(this.copyButton, this.text));
    this.editButton = iconButton("edit", "Edit and send again", () => this.edit());
    this.actions = element("div", { class: "actions" }, this.copyButton, this.editButton);
    this.node = element("article", { class: "message user", "aria-label": "You" }, this.bubble, this.note, this.actions);
    this.setPending(isPending);
  }

  get role() {
    return "user";
  }

  setPending(isPending, note = "") {
    this.node.classList.toggle("is-pending", isPending);
    this.actions.hidden = isPending;
    this.note.textContent = note;
    this.note.hidden = !note;
  }

  accepted(id) {
    this.id = id;
    this.setPending(false);
  }

  edit(text = this.text, error = "") {
    if (this.editor) return;
    const box = element("textarea", { class: "edit-box", "aria-label": "Edit the message", rows: "1" });
    box.value = text;
    const send = element("button", { type: "submit", class: "button primary" }, "Send");
    const cancel = element("button", { type: "button", class: "button", onclick: () => this.closeEditor() }, "Cancel");
    const problem = element("p", { class: "problem", role: "alert", hidden: !error }, error);
    this.editor = element("form", { class: "editor" }, box, problem, element("div", { class: "editor-buttons" }, cancel, send));
    this.editor.addEventListener("submit", (event) => {
      event.preventDefault();
      const edited = box.value.trim();
      if (!edited) return;
      this.on.edited(this, edited);
    });
    box.addEventListener("input", () => grow(box));
    box.addEventListener("keydown", (event) => {
      if (isSubmit(event)) {
        event.preventDefault();
        this.editor.requestSubmit();
      } else if (isCancel(event)) {
        event.stopPropagation();
        this.closeEditor();
      }
    });
    this.bubble.hidden = true;
    this.actions.hidden = true;
    this.node.classList.add("is-editing");
    this.node.prepend(this.editor);
    grow(box);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }

  closeEditor() {
    this.editor?.remove();
    this.editor = null;
    this.bubble.hidden = false;
    this.actions.hidden = false;
    this.node.classList.remove("is-editing");
    this.editButton.focus();
  }
}
