// What was typed into the box at the bottom, and every text that was sent and is not yet accepted: one record per tab and
// conversation, so that no tab takes away another's text. It survives a reload, a crash and a sign-out for 30 days, where
// the browser lets a page store anything. A sent edit is kept likewise; one that is still being written is not.

import { lasting } from "./storage.js";
import { tab, user } from "./whose.js";

const PREFIX = "chat.draft.";
const KEPT_MS = 30 * 24 * 3600 * 1000;

const of = (conversation) => `${PREFIX}${user}.${conversation ?? "new"}.`;
const mine = (conversation) => of(conversation) + tab;

export const joined = (texts) => texts.filter((text) => text.trim()).join("\n\n");

/** The record {text, sent: {id: text}} of this tab. */
function own(conversation) {
  return lasting.get(mine(conversation)) ?? { text: "", sent: {} };
}

function keep(conversation, { text, sent }) {
  if (text || Object.keys(sent).length) lasting.set(mine(conversation), { text, sent, at: Date.now() });
  else lasting.remove(mine(conversation));
}

/** Make another tab's latest record ours: that tab was closed, or it still shows the text and keeps it when it is left. */
function takeOver(conversation) {
  const keys = lasting.keys().filter((key) => key.startsWith(of(conversation)));
  if (keys.length === 0 || keys.includes(mine(conversation))) return;
  const at = (key) => lasting.get(key)?.at ?? 0;
  const latest = keys.reduce((one, other) => (at(other) > at(one) ? other : one));
  keep(conversation, lasting.get(latest, { text: "", sent: {} }));
  lasting.remove(latest);
}

export const drafts = {
  /** What belongs into the box: also what was sent and is not `onTheWay` (ids) any more. */
  read(conversation, onTheWay = []) {
    takeOver(conversation);
    const { text, sent } = own(conversation);
    const isOnTheWay = ([id]) => onTheWay.includes(id);
    const left = Object.entries(sent).filter((each) => !isOnTheWay(each)).map(([, each]) => each);
    const whole = joined([...left, text]);
    keep(conversation, { text: whole, sent: Object.fromEntries(Object.entries(sent).filter(isOnTheWay)) });
    return whole;
  },

  write(conversation, text) {
    keep(conversation, { ...own(conversation), text });
  },

  /** A text leaves for the service; it is kept until `settle` or `giveBack`. */
  sent(conversation, id, text) {
    const { text: typed, sent } = own(conversation);
    keep(conversation, { text: typed, sent: { ...sent, [id]: text } });
  },

  settle(conversation, id) {
    const { text, sent } = own(conversation);
    delete sent[id];
    keep(conversation, { text, sent });
  },

  /** A refused text becomes a draft again, before whatever was typed since. */
  giveBack(conversation, id, text) {
    this.settle(conversation, id);
    this.write(conversation, joined([text, own(conversation).text]));
  },

  sweep(now = Date.now()) {
    for (const key of lasting.keys().filter((each) => each.startsWith(PREFIX))) {
      if (now - (lasting.get(key)?.at ?? 0) > KEPT_MS) lasting.remove(key);
    }
  },
};
