// What was typed and not yet accepted, one text per conversation; it survives a reload, a crash and a sign-out.

import { lasting } from "./storage.js";

const PREFIX = "chat.draft.";
const KEPT_MS = 30 * 24 * 3600 * 1000;

const keyOf = (conversation) => PREFIX + (conversation ?? "new");

export const drafts = {
  read(conversation) {
    return lasting.get(keyOf(conversation))?.text ?? "";
  },

  write(conversation, text) {
    if (text) lasting.set(keyOf(conversation), { text, at: Date.now() });
    else lasting.remove(keyOf(conversation));
  },

  /** Forget the draft, unless the user has written something else since. */
  settle(conversation, text) {
    if (this.read(conversation).trim() === text.trim()) lasting.remove(keyOf(conversation));
  },

  sweep(now = Date.now()) {
    for (const key of lasting.keys().filter((each) => each.startsWith(PREFIX))) {
      if (now - (lasting.get(key)?.at ?? 0) > KEPT_MS) lasting.remove(key);
    }
  },
};
