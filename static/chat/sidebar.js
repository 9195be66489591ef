// The list of conversations: newest first under their days, search, older ones, rename in place, delete after a question.

import { confirmed } from "./confirm.js";
import { element, iconButton } from "./element.js";
import { getJson, postForm } from "./http.js";
import { isCancel, isSubmit } from "./keys.js";

const DAY_MS = 24 * 3600 * 1000;
const TYPING_MS = 200;

function dayName(moment, now = new Date()) {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const at = new Date(moment).getTime();
  if (at >= midnight) return "Today";
  if (at >= midnight - DAY_MS) return "Yesterday";
  if (at >= midnight - 7 * DAY_MS) return "Last 7 days";
  return at >= midnight - 30 * DAY_MS ? "Last 30 days" : "Older";
}

export class Sidebar {
  /** `on`: open(id), renamed(id, title), deleted(id), problem(text) */
  constructor(root, dialog, on) {
    this.list = root.querySelector("[data-list]");
    this.more = root.querySelector("[data-older]");
    this.search = root.querySelector("[data-search]");
    this.dialog = dialog;
    this.on = on;
    this.entries = [];
    this.removed = new Set();
    this.next = null;
    this.current = null;
    this.asked = 0;
    this.more.addEventListener("click", () => this.older());
    this.search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.refresh(), TYPING_MS);
    });
  }

  show({ conversations, next }) {
    this.entries = conversations;
    this.next = next;
    this.draw();
  }

  select(id) {
    this.current = id;
    this.draw();
  }

  path(before) {
    const query = new URLSearchParams();
    if (this.search.value.trim()) query.set("q", this.search.value.trim());
    if (before) query.set("before", before);
    return query.size ? `/c/?${query}` : "/c/";
  }

  /** Ask for the newest again; what was loaded before and is older stays. */
  async refresh() {
    const asked = (this.asked += 1);
    try {
      const { conversations, next } = await getJson(this.path());
      if (asked !== this.asked) return;
      const isSearch = Boolean(this.search.value.trim());
      const edge = conversations.at(-1)?.updated_at;
      const ids = new Set(conversations.map((entry) => entry.id));
      const older = isSearch || !next || this.wasSearch ? [] : this.entries.filter((entry) => !ids.has(entry.id) && entry.updated_at < edge);
      if (!older.length) this.next = next;
      this.wasSearch = isSearch;
      this.entries = [...conversations, ...older];
      this.draw();
    } catch (failed) {
      if (failed.code !== "offline") this.on.problem(failed.message);
    }
  }

  async older() {
    const asked = this.asked;
    try {
      const { conversations, next } = await getJson(this.path(this.next));
      if (asked !== this.asked) return;
      this.entries.push(...conversations);
      this.next = next;
      this.draw();
    } catch (failed) {
      this.on.problem(failed.message);
    }
  }

  draw() {
    // Never under the user's hands: a rename in progress stays.
    if (this.list.querySelector("form")) return;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    const groups = new Map();
    for (const entry of this.entries) {
      // An answer to an earlier question may still list what was deleted since.
      if (this.removed.has(entry.id)) continue;
      const day = dayName(entry.updated_at);
      groups.set(day, [...(groups.get(day) ?? []), entry]);
    }
    const nodes = [...groups].map(([day, entries]) => element("section", {},
      element("h3", {}, day), element("ul", {}, ...entries.map((entry) => this.row(entry)))));
    const nothing = this.search.value.trim() ? "Nothing found." : "Your chats will be listed here.";
    this.list.replaceChildren(...(nodes.length ? nodes : [element("p", { class: "quiet" }, nothing)]));
    this.more.hidden = !this.next;
    if (focused) this.list.querySelector(`[data-focus="${focused}"]`)?.focus();
  }

  row(entry) {
    const isCurrent = entry.id === this.current;
    const link = element("a", {
      href: `/c/${entry.id}`, title: entry.title, "data-focus": entry.id, "aria-current": isCurrent ? "page" : null,
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
        event.preventDefault();
        this.on.open(entry.id);
      },
    }, entry.title);
    const row = element("li", { class: isCurrent ? "row is-current" : "row" }, link,
      iconButton("edit", `Rename ${entry.title}`, () => this.rename(row, entry), { "data-focus": `${entry.id}-rename` }),
      iconButton("trash", `Delete ${entry.title}`, () => this.remove(entry), { "data-focus": `${entry.id}-delete` }));
    return row;
  }

  rename(row, entry) {
    const box = element("input", { "aria-label": "Title", maxlength: "120", class: "rename-box", autocomplete: "off" });
    box.value = entry.title;
    const form = element("form", { class: "rename" }, box);
    let isOver = false;
    const close = () => {
      isOver = true;
      form.remove();
      this.draw();
      this.list.querySelector(`[data-focus="${entry.id}"]`)?.focus();
    };
    const keep = async () => {
      if (isOver) return;
      const title = box.value.trim();
      close();
      if (!title || title === entry.title) return;
      try {
        const renamed = await postForm(`/c/${entry.id}/rename`, { title });
        // The list may have been read again meanwhile, before or while the title changed.
        for (const each of [entry, ...this.entries]) if (each.id === entry.id) each.title = renamed.title;
        this.draw();
        this.on.renamed(entry.id, renamed.title);
        this.refresh();
      } catch (failed) {
        this.on.problem(failed.message);
      }
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    box.addEventListener("keydown", (event) => {
      if (isSubmit(event)) {
        event.preventDefault();
        keep();
      } else if (isCancel(event)) {
        event.stopPropagation();
        close();
      }
    });
    box.addEventListener("blur", keep);
    row.replaceChildren(form);
    box.focus();
    box.select();
  }

  async remove(entry) {
    if (!(await confirmed(this.dialog, `“${entry.title}” and all its messages will be gone for good.`))) return;
    try {
      await postForm(`/c/${entry.id}/delete`);
      this.removed.add(entry.id);
      this.draw();
      this.on.deleted(entry.id);
    } catch (failed) {
      this.on.problem(failed.message);
    }
  }
}
