// The open conversation: its messages in order, what is on its way, what is being answered.

import { AnswerMessage } from "./answer_message.js";
import { drafts } from "./drafts.js";
import { element } from "./element.js";
import { getJson } from "./http.js";
import { Streams } from "./streams.js";
import { UserMessage } from "./user_message.js";
import { uuid4 } from "./uuid.js";

const NOT_SENT = "Not sent yet: it goes out as soon as the connection is back.";
const NOT_CONFIRMED = "Not confirmed yet. Asking again…";

export class Conversation {
  /** `on`: opened(id, title), accepted(frame), gone(), announce(text), emptied(isEmpty) */
  constructor({ thread, follow, socket, outbox, composer, params, model, on }) {
    Object.assign(this, { thread, follow, socket, outbox, composer, params, model, on });
    this.id = null;
    this.views = [];
    this.pending = new Map();
    this.visit = 0;
    this.streams = new Streams(socket, {
      ended: (view, end, live) => this.ended(view, end, live),
      changed: () => this.refreshComposer(),
    });
  }

  /** Show a conversation: `opened` is its transcript, null a new one. */
  show(opened) {
    this.visit += 1;
    this.id = opened?.conversation.id ?? null;
    this.streams.clear();
    this.pending.clear();
    this.views = [];
    this.thread.replaceChildren();
    const waiting = this.outbox.of(this.id);
    this.composer.open(this.id, waiting.map((entry) => entry.frame.id));
    this.merge(opened?.messages ?? []);
    for (const entry of waiting) this.showPending(entry.frame);
    this.on.opened(this.id, opened?.conversation.title ?? "New chat", opened?.conversation.model ?? "");
    this.refreshComposer();
    this.follow.jump();
  }

  /** Ask for the transcript again and change only what differs. */
  async refresh() {
    if (!this.id || this.pending.size) {
      this.isStale = Boolean(this.id);
      return;
    }
    this.isStale = false;
    const visit = this.visit;
    try {
      const { conversation, messages } = await getJson(`/c/${this.id}/transcript`);
      if (visit !== this.visit || this.pending.size) return;
      this.merge(messages);
      this.on.opened(this.id, conversation.title, conversation.model);
    } catch (failed) {
      if (visit === this.visit && failed.code === "not_found") this.on.gone();
    }
  }

  merge(messages) {
    const known = new Map(this.views.map((view) => [view.id, view]));
    this.views = messages.map((message) => known.get(message.id) ?? this.viewOf(message));
    for (const message of messages) {
      const view = known.get(message.id);
      if (!view || view.role !== "assistant" || message.status === "accepted") continue;
      if (!this.streams.has(message.generation) && view.text !== message.text) {
        view.text = message.text;
        view.finish(message);
      }
    }
    this.draw();
  }

  viewOf(message) {
    if (message.role === "user") return new UserMessage(message, { edited: (view, text) => this.edit(view, text) });
    const view = new AnswerMessage(message, { again: (answer) => this.regenerate(answer) });
    if (message.status === "accepted") this.streams.attach(message.generation, view);
    else if (message.generation) view.finish(message);
    return view;
  }

  draw() {
    const usage = this.views.findLast((view) => view.usage)?.usage;
    const nodes = this.views.map((view) => view.node);
    const dropped = usage?.dropped_turns ?? 0;
    if (dropped > 0 && dropped < nodes.length) {
      nodes.splice(dropped, 0, element("p", { class: "cut", role: "separator", "aria-label": "The model no longer saw what stands above" },
        `The model no longer saw what stands above: ${dropped} ${dropped === 1 ? "message" : "messages"} did not fit.`));
    }
    for (const stale of [...this.thread.children].filter((child) => !nodes.includes(child))) stale.remove();
    nodes.forEach((node, n) => {
      if (this.thread.children[n] !== node) this.thread.insertBefore(node, this.thread.children[n] ?? null);
    });
    const last = this.views.findLast((view) => view.role === "assistant");
    for (const view of this.views) if (view.role === "assistant") view.setLast(view === last && view === this.views.at(-1));
    this.on.emptied(this.views.length === 0);
  }

  // --- out

  send(text) {
    const params = this.params.read();
    if (!params) return false;
    this.put({ type: "send", id: uuid4(), conversation: this.id, text, params, ...this.model() }, text);
    return true;
  }

  edit(view, text) {
    const params = this.params.read();
    if (!params) return;
    if (this.composer.isBusy) {
      this.composer.say("The answer is still being written. Wait for it, or stop it, then send the edit.");
      return;
    }
    view.closeEditor();
    this.put({ type: "send", id: uuid4(), conversation: this.id, text, params, replaces: view.id, ...this.model() }, text);
  }

  regenerate(answer) {
    const params = this.params.read();
    if (params && !this.composer.isBusy) this.put({ type: "regenerate", id: uuid4(), generation: answer.generation, params }, "");
  }

  put(frame, text) {
    this.showPending(frame);
    if (text) drafts.sent(this.id, frame.id, text);
    this.outbox.put(frame, { conversation: this.id, text });
    this.connectionChanged();
    this.follow.jump();
  }

  showPending(frame) {
    const from = this.views.findIndex((view) => (frame.replaces && view.id === frame.replaces)
      || (frame.type === "regenerate" && view.generation === frame.generation));
    const replaced = from === -1 ? [] : this.views.slice(from);
    for (const view of replaced) view.node.hidden = true;
    const made = [];
    if (frame.type === "send") {
      made.push(new UserMessage({ id: frame.id, text: frame.text, isPending: true }, { edited: (view, text) => this.edit(view, text) }));
    }
    made.push(new AnswerMessage({ id: `answer of ${frame.id}`, generation: null }, { again: (answer) => this.regenerate(answer) }));
    made.at(-1).wait("");
    this.pending.set(frame.id, { frame, replaced, made });
    this.views.push(...made);
    this.draw();
    this.refreshComposer();
  }

  stop() {
    for (const [id, pending] of this.pending) {
      if ((this.outbox.entries.get(id)?.tries ?? 1) === 0) this.refused({ id, code: "withdrawn", message: "" });
      else pending.isStopped = true;
    }
    this.streams.stopAll();
  }

  // --- in

  accepted(frame) {
    const entry = this.outbox.settle(frame.id);
    if (entry?.text) drafts.settle(entry.conversation, frame.id);
    const pending = this.pending.get(frame.id);
    this.pending.delete(frame.id);
    if (pending) {
      const answer = pending.made.at(-1);
      const gone = new Set(pending.replaced);
      // A transcript fetched meanwhile may show the same messages already.
      for (const view of this.views) {
        if (!pending.made.includes(view) && (view.id === frame.answer || (pending.made.length > 1 && view.id === frame.message))) gone.add(view);
      }
      this.views = this.views.filter((view) => !gone.has(view));
      if (pending.made.length > 1) pending.made[0].accepted(frame.message);
      answer.id = frame.answer ?? answer.id;
      answer.generation = frame.generation;
      if (this.id === null) {
        this.id = frame.conversation;
        this.composer.moveTo(this.id);
      }
      this.streams.attach(frame.generation, answer, { isFresh: (entry?.tries ?? 0) === 1 });
      if (pending.isStopped) this.streams.stopAll();
      this.draw();
    }
    this.on.accepted(frame, Boolean(pending));
    this.refreshComposer();
    if (this.isStale) this.refresh();
  }

  refused(frame) {
    const entry = this.outbox.settle(frame.id);
    const pending = this.pending.get(frame.id);
    this.pending.delete(frame.id);
    if (!pending) {
      if (entry?.text) drafts.giveBack(entry.conversation, frame.id, entry.text);
      return;
    }
    if (entry?.text) drafts.settle(entry.conversation, frame.id);
    for (const view of pending.replaced) view.node.hidden = false;
    this.views = this.views.filter((view) => !pending.made.includes(view));
    this.draw();
    const edited = pending.frame.replaces && pending.replaced[0];
    if (edited) edited.edit(pending.frame.text, frame.message);
    else if (pending.frame.type === "send") this.composer.giveBack(pending.frame.text);
    if (frame.message && !edited) this.composer.say(frame.message, frame.retry_after_s);
    this.refreshComposer();
    if (this.isStale) this.refresh();
  }

  /** The service cannot say whether a message was stored: it is asked again, and true returned, a few times. */
  doubted(frame) {
    if (!frame.unknown || !this.outbox.askAgain(frame)) return false;
    const made = this.pending.get(frame.id)?.made ?? [];
    if (made.length > 1) made[0].setPending(true, NOT_CONFIRMED);
    return true;
  }

  take(frame) {
    this.streams.take(frame);
  }

  noticed({ conversation, generation, status }) {
    if (!this.id || conversation !== this.id) return;
    const isKnown = this.views.some((view) => view.generation === generation);
    if (!isKnown || (status !== "accepted" && !this.streams.has(generation))) this.refresh();
  }

  /** The socket has opened: what was not answered goes out again, what was being written goes on. */
  connected(isAgain) {
    this.outbox.resend();
    this.streams.resumeAll();
    this.connectionChanged();
    if (isAgain) this.refresh();
  }

  connectionChanged() {
    for (const { made } of this.pending.values()) {
      if (made.length > 1) made[0].setPending(true, this.socket.isOpen ? "" : NOT_SENT);
    }
  }

  async ended(view, end, live) {
    this.on.announce(end.type === "failed" ? `The answer failed. ${end.message ?? ""}` : `Answer: ${view.body.textContent}`);
    this.draw();
    const visit = this.visit;
    try {
      const stored = await getJson(`/c/${this.id}/answers/${view.generation}`);
      if (visit !== this.visit || stored.status === "accepted") return;
      if (live.isWrong || stored.text !== view.text) view.text = stored.text;
      view.render(stored.html);
    } catch { /* What was streamed is shown; a reload brings the stored one. */ }
  }

  get isWaiting() {
    return this.streams.isLive || this.pending.size > 0;
  }

  refreshComposer() {
    const isStopping = this.streams.isStopping || [...this.pending.values()].some((pending) => pending.isStopped);
    this.composer.setBusy(this.isWaiting, isStopping);
  }
}
