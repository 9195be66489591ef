// The box at the bottom: what the user types, Send or Stop, and what was refused, with the text kept.

import { drafts, joined } from "./drafts.js";
import { grow, isSubmit } from "./keys.js";
import { duration } from "./wait_text.js";

export class Composer {
  /** `on.send(text)` returns whether the text was taken; `on.stop()`. */
  constructor(form, on) {
    this.form = form;
    this.on = on;
    this.box = form.querySelector("textarea");
    this.sendButton = form.querySelector("[data-send]");
    this.stopButton = form.querySelector("[data-stop]");
    this.problem = form.querySelector("[data-problem]");
    this.key = null;
    this.early = this.box.value; // typed while the page still loaded
    this.isBusy = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.stopButton.addEventListener("click", () => on.stop());
    this.box.addEventListener("input", () => this.typed());
    // Another tab may have taken the draft over; what stands here is kept all the same.
    window.addEventListener("pagehide", () => this.box.value && drafts.write(this.key, this.box.value));
    this.box.addEventListener("keydown", (event) => {
      if (!isSubmit(event)) return;
      event.preventDefault();
      this.submit();
    });
  }

  /** Show the draft of a conversation; `onTheWay` are the ids of messages that are shown as pending. */
  open(conversation, onTheWay = []) {
    this.key = conversation;
    this.box.value = drafts.read(conversation, onTheWay);
    if (this.early.trim() && this.early.trim() !== this.box.value.trim()) {
      this.box.value = this.box.value ? `${this.box.value}\n${this.early}` : this.early;
      drafts.write(conversation, this.box.value);
    }
    this.early = "";
    this.clearProblem();
    this.refresh();
  }

  /** The new conversation has an id now: what was typed since goes along. */
  moveTo(conversation) {
    drafts.write(this.key, "");
    this.key = conversation;
    drafts.write(conversation, this.box.value);
  }

  typed() {
    drafts.write(this.key, this.box.value);
    this.clearProblem();
    this.refresh();
  }

  submit() {
    const text = this.box.value.trim();
    if (!text) return;
    if (this.isBusy) {
      this.say("The answer is still being written. Wait for it, or stop it; your text stays here.");
      return;
    }
    if (!this.on.send(text)) return;
    // The text stays in the drafts as sent, until the service has accepted it.
    this.box.value = "";
    this.typed();
  }

  /** A refused text comes back, before whatever was typed since. */
  giveBack(text) {
    this.box.value = joined([text, this.box.value]);
    drafts.write(this.key, this.box.value);
    this.refresh();
  }

  fill(text) {
    this.box.value = text;
    this.typed();
  }

  setBusy(isBusy, isStopping = false) {
    this.isBusy = isBusy;
    const hadFocus = document.activeElement === this.stopButton;
    this.stopButton.hidden = !isBusy;
    this.sendButton.hidden = isBusy;
    this.stopButton.disabled = isStopping;
    this.stopButton.setAttribute("aria-label", isStopping ? "Stopping" : "Stop the answer");
    if (hadFocus && !isBusy) this.box.focus();
  }

  say(message, retryAfterS = null) {
    clearInterval(this.countdown);
    const until = retryAfterS ? Date.now() + retryAfterS * 1000 : 0;
    const show = () => {
      const left = (until - Date.now()) / 1000;
      this.problem.textContent = left > 0 ? `${message} Try again in ${duration(left)}.` : message;
      if (left <= 0) {
        clearInterval(this.countdown);
        if (until) this.problem.textContent = "You can try again now.";
      }
    };
    show();
    // Read out once: the countdown is for the eyes.
    this.problem.setAttribute("role", "alert");
    if (until) {
      this.countdown = setInterval(() => {
        this.problem.removeAttribute("role");
        show();
      }, 1000);
    }
    this.problem.hidden = false;
  }

  clearProblem() {
    clearInterval(this.countdown);
    this.problem.hidden = true;
    this.problem.textContent = "";
  }

  refresh() {
    grow(this.box);
    this.sendButton.disabled = !this.box.value.trim();
  }

  focus() {
    // On a phone the keyboard would hide the page.
    if (matchMedia("(hover: hover)").matches) this.box.focus();
  }
}
