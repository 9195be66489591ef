// Frames that want an `accepted`: sent again under the same id until the service has said yes or no, reloads included.

import { ofThisTab } from "./storage.js";
import { user } from "./whose.js";

const KEY = `chat.outbox.${user}`;
const ANSWER_MS = 12_000;
const LONGEST_S = 15;
const MOST_DOUBTS = 8;

export class Outbox {
  constructor(socket) {
    this.socket = socket;
    this.entries = new Map(Object.entries(ofThisTab.get(KEY, {})));
    for (const entry of this.entries.values()) entry.tries ||= 1;
  }

  /** Send a frame with an id; `shown` is where it stands: {conversation, text}. */
  put(frame, shown) {
    this.entries.set(frame.id, { frame, ...shown, tries: 0, doubts: 0 });
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

  /** The service does not know whether it has this: send it again, later and later. Returns false after eight times. */
  askAgain({ id, retry_after_s: retryAfterS }) {
    const entry = this.entries.get(id);
    if (!entry || entry.doubts >= MOST_DOUBTS) return false;
    const waitS = Math.min(LONGEST_S, (retryAfterS ?? 1) * 2 ** entry.doubts) * (1 + Math.random() / 4);
    entry.doubts += 1;
    entry.answered = entry.tries;
    this.keep();
    setTimeout(() => entry.answered === entry.tries && this.sendOne(id), waitS * 1000);
    return true;
  }

  sendOne(id) {
    const entry = this.entries.get(id);
    if (!entry || !this.socket.send(entry.frame)) return;
    entry.tries += 1;
    this.keep();
    const { tries } = entry;
    setTimeout(() => {
      const isWaiting = this.entries.has(id) && entry.tries === tries && entry.answered !== tries;
      // Sent, no word, and still the same connection: it is dead without knowing it.
      if (isWaiting && this.socket.isOpen) this.socket.restart();
    }, ANSWER_MS);
  }

  keep() {
    if (this.entries.size) ofThisTab.set(KEY, Object.fromEntries(this.entries));
    else ofThisTab.remove(KEY);
  }
}
