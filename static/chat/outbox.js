// Frames that want an `accepted`: sent again under the same id until the service has said yes or no, reloads included.

import { ofThisTab } from "./storage.js";
import { user } from "./whose.js";

const KEY = `chat.outbox.${user}`;
const ANSWER_MS = 12_000;

export class Outbox {
  constructor(socket) {
    this.socket = socket;
    this.entries = new Map(Object.entries(ofThisTab.get(KEY, {})));
    for (const entry of this.entries.values()) entry.tries ||= 1;
  }

  /** Send a frame with an id; `shown` is where it stands: {conversation, text}. */
  put(frame, shown) {
    this.entries.set(frame.id, { frame, ...shown, tries: 0 });
    this.keep();
    this.sendOne(frame.id);
  }

  /** The service answered: forget the entry and return it. */
  settle(id) {
    const entry = this.entries.get(id);
    this.entries.delete(id);
    this.keep();
    return entry;
  }

  of(conversation) {
    return [...this.entries.values()].filter((entry) => entry.conversation === conversation);
  }

  resend() {
    for (const id of this.entries.keys()) this.sendOne(id);
  }

  sendOne(id) {
    const entry = this.entries.get(id);
    if (!entry || !this.socket.send(entry.frame)) return;
    entry.tries += 1;
    this.keep();
    const tries = entry.tries;
    setTimeout(() => {
      const waiting = this.entries.get(id);
      // Sent, no word, and still the same connection: it is dead without knowing it.
      if (waiting && waiting.tries === tries && this.socket.isOpen) this.socket.restart();
    }, ANSWER_MS);
  }

  keep() {
    if (this.entries.size) ofThisTab.set(KEY, Object.fromEntries(this.entries));
    else ofThisTab.remove(KEY);
  }
}
