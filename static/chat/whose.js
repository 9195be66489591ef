// Whose text it is that this page keeps: another user of the same browser neither sees nor sends it.

import { ofThisTab } from "./storage.js";
import { uuid4 } from "./uuid.js";

const KEY = "chat.tab";

export const user = document.querySelector("[data-user]").dataset.user;

/** A name of this tab, which a reload keeps. */
export const tab = ofThisTab.get(KEY) ?? uuid4();
ofThisTab.set(KEY, tab);
