// Puts the chat page together: socket, list, conversation, composer; and follows the address bar.

import "./theme.js";
import { announce } from "./announcer.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { drafts } from "./drafts.js";
import { Drawer } from "./drawer.js";
import { Follow } from "./follow.js";
import { getJson } from "./http.js";
import { Outbox } from "./outbox.js";
import { Params } from "./params.js";
import { Sidebar } from "./sidebar.js";
import { ChatSocket } from "./socket.js";
import { lasting } from "./storage.js";

const NOTICE_MS = 250;

const data = JSON.parse(document.getElementById("chat-data").textContent);
const $ = (selector) => document.querySelector(selector);
const banner = $("[data-banner]");
const picker = $("[data-model]");

const socket = new ChatSocket(data.socket, {
  frame: (frame) => take(frame),
  open: (isAgain) => {
    banner.hidden = true;
    conversation.connected(isAgain);
    if (isAgain) sidebar.refresh();
  },
  down: () => {
    say("Connection lost. Trying again…");
    conversation.connectionChanged();
  },
  signedOut: () => say("You are signed out. Your text is kept.", { href: `/accounts/login/?next=${encodeURIComponent(location.pathname)}`, label: "Sign in" }),
  forbidden: () => say("This account may not chat. Ask whoever runs this service."),
  awaits: () => conversation.isWaiting,
});

const composer = new Composer($("[data-composer]"), {
  send: (text) => conversation.send(text),
  stop: () => conversation.stop(),
});

const conversation = new Conversation({
  thread: $("[data-thread]"),
  follow: new Follow($("[data-scroller]"), $("[data-jump]")),
  socket,
  outbox: new Outbox(socket),
  composer,
  params: new Params($("[data-params]")),
  model: () => (picker ? { model: picker.value } : {}),
  on: {
    opened: (id, title, model) => {
      entitle(title);
      if (picker && model && [...picker.options].some((option) => option.value === model)) picker.value = model;
      sidebar.select(id);
    },
    accepted: (frame, isShown) => {
      if (isShown && location.pathname !== `/c/${frame.conversation}`) history.replaceState(null, "", `/c/${frame.conversation}`);
      if (isShown && frame.title) entitle(frame.title);
      sidebar.current = conversation.id;
      sidebar.refresh();
    },
    gone: () => {
      open(null, { isReplacing: true });
      composer.say("That conversation was deleted.");
    },
    announce,
    emptied: (isEmpty) => { $("[data-welcome]").hidden = !isEmpty; },
  },
});

const drawer = new Drawer($("[data-drawer]"), $("[data-drawer-button]"), $("[data-backdrop]"));

const sidebar = new Sidebar($("[data-drawer]"), $("[data-confirm]"), {
  open: (id) => open(id),
  renamed: (id, title) => { if (id === conversation.id) entitle(title); },
  deleted: (id) => { if (id === conversation.id) open(null, { isReplacing: true }); },
  problem: (text) => composer.say(text),
});

function take(frame) {
  switch (frame.type) {
    case "accepted":
      return conversation.accepted(frame);
    case "error":
      if (frame.id) return conversation.doubted(frame) || conversation.refused(frame);
      if (frame.generation) return conversation.streams.refused(frame) || conversation.refresh();
      return composer.say(frame.message, frame.retry_after_s);
    case "notice":
      return noticed(frame);
    default:
      return conversation.take(frame);
  }
}

// Our own `accepted` may come a moment after the notice of it: look then.
let listTimer = null;
function noticed(frame) {
  setTimeout(() => conversation.noticed(frame), NOTICE_MS);
  listTimer ??= setTimeout(() => {
    listTimer = null;
    sidebar.refresh();
  }, NOTICE_MS);
}

function say(text, link = null) {
  banner.textContent = text;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.label;
    banner.append(" ", anchor);
  }
  banner.hidden = false;
}

function entitle(title) {
  $("[data-title]").textContent = title;
  document.title = `${title} · Chat`;
}

async function open(id, { isReplacing = false, isBack = false } = {}) {
  drawer.close();
  let opened = null;
  try {
    opened = id ? await getJson(`/c/${id}/transcript`) : null;
  } catch (failed) {
    composer.say(failed.code === "not_found" ? "That conversation was deleted." : failed.message);
    if (failed.code === "not_found") sidebar.refresh();
    return;
  }
  const path = id ? `/c/${id}` : "/";
  if (!isBack) history[isReplacing ? "replaceState" : "pushState"](null, "", path);
  conversation.show(opened);
  composer.focus();
}

window.addEventListener("popstate", () => {
  open(/^\/c\/([\da-f-]{36})$/.exec(location.pathname)?.[1] ?? null, { isBack: true });
});

for (const link of document.querySelectorAll("[data-new]")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(null);
  });
}

for (const button of document.querySelectorAll("[data-suggestion]")) {
  button.addEventListener("click", () => {
    composer.fill(button.textContent.trim());
    composer.submit();
  });
}

if (picker) {
  const kept = lasting.get("chat.model");
  if (kept && [...picker.options].some((option) => option.value === kept)) picker.value = kept;
  picker.addEventListener("change", () => lasting.set("chat.model", picker.value));
}

drafts.sweep();
sidebar.show(data.list);
conversation.show(data.opened);
socket.connect();
composer.focus();
document.documentElement.dataset.ready = "true";
