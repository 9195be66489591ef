// Shows Markdown while it arrives: only blocks whose source changed are made again, and only as DOM nodes.
//
// The same elements as the server's renderer, so that swapping in its HTML (which adds highlighting) moves nothing.

import { blocks } from "./markdown_blocks.js";
import { copyFrom } from "./clipboard.js";
import { element, iconButton } from "./element.js";
import { inline } from "./markdown_inline.js";

const nodesOf = (found) => found.map(nodeOf);

function nodeOf(block) {
  switch (block.kind) {
    case "code":
      return codeBlock(element("pre", {}, element("code", { class: block.language ? `language-${block.language}` : null }, block.code + (block.code ? "\n" : ""))));
    case "heading":
      return element(`h${block.level}`, {}, ...inline(block.text));
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...nodesOf(block.blocks));
    case "list":
      return listNode(block);
    case "table":
      return tableNode(block);
    default:
      return element("p", {}, ...inline(block.text));
  }
}

function listNode({ isOrdered, start, isLoose, items }) {
  const item = (found) => element("li", {}, ...found.flatMap((block) => (
    block.kind === "paragraph" && !isLoose ? inline(block.text) : [nodeOf(block)])));
  return element(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 ? start : null }, ...items.map(item));
}

function tableNode({ head, align, rows }) {
  const cell = (tag, text, n) => element(tag, { class: align[n] ? `align-${align[n]}` : null }, ...inline(text ?? ""));
  const row = (tag, texts) => element("tr", {}, ...head.map((_, n) => cell(tag, texts[n], n)));
  return scrolling(element("table", {},
    element("thead", {}, row("th", head)),
    rows.length ? element("tbody", {}, ...rows.map((texts) => row("td", texts))) : null));
}

/** A code block with its language and a copy button; takes the renderer's or the server's `pre`. */
function codeBlock(pre) {
  const code = pre.querySelector("code");
  const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
  pre.setAttribute("tabindex", "0");
  const button = iconButton("copy", "Copy this code", () => copyFrom(button, pre.textContent.replace(/\n$/, "")));
  return element("div", { class: "code" },
    element("div", { class: "code-head" }, element("span", {}, language || "code"), button),
    pre);
}

const scrolling = (table) => element("div", { class: "table", tabindex: "0" }, table);

/** Draws growing Markdown into one element. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.sources = [];
  }

  draw(text) {
    const lines = text.replace(/\r\n?/g, "\n").split("\n");
    const found = blocks(lines);
    const sources = found.map((block) => lines.slice(block.from, block.to).join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.container.childNodes.length > same) this.container.lastChild.remove();
    this.container.append(...nodesOf(found.slice(same)));
    this.sources = sources;
  }

  /** Take the server's HTML, which it has cleaned. Parsed in an inert document: nothing in it runs or loads. */
  drawHtml(html) {
    const parsed = new DOMParser().parseFromString(html, "text/html");
    for (const pre of parsed.querySelectorAll("pre")) {
      const stand = parsed.createElement("div");
      pre.replaceWith(stand);
      stand.replaceWith(codeBlock(document.importNode(pre, true)));
    }
    for (const table of parsed.querySelectorAll("table")) {
      const stand = parsed.createElement("div");
      table.replaceWith(stand);
      stand.replaceWith(scrolling(document.importNode(table, true)));
    }
    this.container.replaceChildren(...[...parsed.body.childNodes].filter((node) => node.nodeType === Node.ELEMENT_NODE));
    this.sources = [];
  }
}
