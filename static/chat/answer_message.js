// One answer on the page: waiting, growing, ended. Draws at most once per frame of the screen.

import { copyFrom } from "./clipboard.js";
import { element, iconButton } from "./element.js";
import { MarkdownView } from "./markdown.js";

const ENDINGS = { length: "cut at the length limit", cancelled: "stopped" };
const number = new Intl.NumberFormat("en");

export class AnswerMessage {
  /** `on.again(message)` is called for another answer to the same question. */
  constructor({ id, generation, text = "" }, on) {
    this.id = id;
    this.generation = generation;
    this.text = text;
    this.usage = null;
    this.body = element("div", { class: "markdown" });
    this.markdown = new MarkdownView(this.body);
    this.waiting = element("p", { class: "waiting", hidden: true });
    this.problem = element("p", { class: "problem", hidden: true });
    this.facts = element("span", { class: "facts" });
    this.copyButton = iconButton("copy", "Copy the answer", () => copyFrom(this.copyButton, this.text));
    this.againButton = iconButton("again", "Answer again", () => on.again(this));
    this.actions = element("div", { class: "actions" }, this.copyButton, this.againButton, this.facts);
    this.actions.hidden = true;
    this.node = element("article", { class: "message answer", "aria-label": "Answer" },
      this.body, this.waiting, this.problem, this.actions);
  }

  get role() {
    return "assistant";
  }

  wait(text) {
    this.node.classList.add("is-live");
    this.waiting.replaceChildren(element("span", { class: "dots", "aria-hidden": "true" }), text);
    this.waiting.hidden = false;
  }

  /** Show the text so far, with the next frame of the screen. */
  grow(text) {
    this.text = text;
    this.node.classList.add("is-live");
    this.waiting.hidden = Boolean(text);
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = null;
    this.markdown.draw(this.text);
  }

  /** The answer has ended: `end` has status or type, reason, code, message, usage. */
  finish(end) {
    cancelAnimationFrame(this.drawing);
    this.drawing = null;
    if (end.html) this.markdown.drawHtml(end.html);
    else this.markdown.draw(this.text);
    this.usage = end.usage ?? null;
    this.node.classList.remove("is-live");
    this.waiting.hidden = true;
    this.copyButton.hidden = !this.text;
    this.actions.hidden = false;
    const isFailed = end.type === "failed" || end.status === "failed" || end.status === "expired";
    this.problem.hidden = !isFailed;
    this.problem.textContent = isFailed ? end.message || "The answer failed. Try again." : "";
    this.facts.textContent = isFailed ? "" : facts(end, this.text);
  }

  /** Replace the streamed drawing by the server's, which adds highlighting. */
  render(html) {
    if (html) this.markdown.drawHtml(html);
  }

  setLast(isLast) {
    this.againButton.hidden = !isLast;
    this.node.classList.toggle("is-last", isLast);
  }
}

function facts({ reason, usage }, text) {
  const said = [];
  if (ENDINGS[reason]) said.push(ENDINGS[reason]);
  if (!text && reason !== "cancelled") said.push("empty answer");
  const tokens = usage?.completion_tokens ?? 0;
  if (tokens) said.push(`${number.format(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens > 1 && usage.decode_ms > 0) said.push(`${number.format(Math.round((tokens * 10_000) / usage.decode_ms) / 10)} tokens/s`);
  const line = said.join(" · ");
  return line.charAt(0).toUpperCase() + line.slice(1);
}
