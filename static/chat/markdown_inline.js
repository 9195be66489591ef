// Inline Markdown to DOM nodes: emphasis, code, links, breaks. Text becomes text nodes; links are http(s) or mail only.

import { element } from "./element.js";

const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITY = /^&(?:amp|lt|gt|quot|nbsp|#\d{1,7}|#x[\da-f]{1,6});/i;
const NAMED = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&nbsp;": "\u00a0" };
const LINK_END = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/;
const AUTOLINK = /^<(https?:\/\/[^\s<>]+)>/i;
const SAFE = /^(?:https?:\/\/|mailto:)\S/i;

function entity(text) {
  const lower = text.toLowerCase();
  if (NAMED[lower]) return NAMED[lower];
  const code = lower[2] === "x" ? parseInt(lower.slice(3), 16) : parseInt(lower.slice(2), 10);
  return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) ? String.fromCodePoint(code) : "\ufffd";
}

function link(url, children) {
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

const isSpace = (char) => char === "" || /\s/u.test(char);
const isPunctuation = (char) => /[\p{P}\p{S}]/u.test(char);

function delimiter(source, start) {
  const char = source[start];
  let end = start;
  while (source[end] === char) end += 1;
  const before = source.slice(Math.max(0, start - 1), start);
  const after = source.slice(end, end + 1);
  const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
  const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
  const isWordy = char === "_";
  return {
    char,
    count: end - start,
    opens: left && (!isWordy || !right || isPunctuation(before)),
    closes: right && (!isWordy || !left || isPunctuation(after)),
  };
}

/** Find the `]` of a `[` at `start`, over nested brackets and code. */
function closingBracket(source, start) {
  let depth = 0;
  for (let i = start; i < source.length; i += 1) {
    if (source[i] === "\\") i += 1;
    else if (source[i] === "[") depth += 1;
    else if (source[i] === "]" && --depth === 0) return i;
  }
  return -1;
}

function codeSpan(source, start) {
  const fence = /^`+/.exec(source.slice(start))[0];
  for (let at = source.indexOf(fence, start + fence.length); at !== -1; at = source.indexOf(fence, at)) {
    let end = at;
    while (source[end] === "`") end += 1;
    if (end - at === fence.length) {
      let code = source.slice(start + fence.length, at).replace(/\n/g, " ");
      if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
      return { node: element("code", {}, code), end };
    }
    at = end;
  }
  return { text: fence, end: start + fence.length };
}

/** Cut `source` into text, nodes and delimiter runs. */
function cut(source) {
  const pieces = [];
  let text = "";
  const flush = () => {
    if (text) pieces.push({ node: document.createTextNode(text) });
    text = "";
  };
  const push = (piece) => { flush(); pieces.push(piece); };
  for (let i = 0; i < source.length;) {
    const char = source[i];
    if (char === "\\" && source[i + 1] === "\n") {
      i += 1;
    } else if (char === "\\" && ESCAPABLE.test(source[i + 1] ?? "")) {
      text += source[i + 1];
      i += 2;
    } else if (char === "\n") {
      text = text.replace(/ +$/, "");
      push({ node: element("br") });
      text = "\n";
      i += 1;
      while (source[i] === " ") i += 1;
    } else if (char === "`") {
      const { node, text: raw, end } = codeSpan(source, i);
      if (node) push({ node });
      else text += raw;
      i = end;
    } else if (char === "&" && ENTITY.test(source.slice(i, i + 12))) {
      const [found] = ENTITY.exec(source.slice(i, i + 12));
      text += entity(found);
      i += found.length;
    } else if (char === "<" && AUTOLINK.test(source.slice(i, i + 2000))) {
      const [whole, url] = AUTOLINK.exec(source.slice(i, i + 2000));
      push({ node: link(url, [url]) });
      i += whole.length;
    } else if (char === "[" || (char === "!" && source[i + 1] === "[")) {
      const open = char === "!" ? i + 1 : i;
      const close = closingBracket(source, open);
      const target = close === -1 ? null : LINK_END.exec(source.slice(close + 1, close + 2100));
      const url = (target?.[1] ?? target?.[2] ?? "").replace(/\\([!-/:-@[-`{-~])/g, "$1");
      if (target && SAFE.test(url)) {
        const label = source.slice(open + 1, close);
        push({ node: link(url, char === "!" ? [label || url] : inline(label)) });
        i = close + 1 + target[0].length;
      } else {
        text += char;
        i += 1;
      }
    } else if (char === "*" || char === "_" || (char === "~" && source[i + 1] === "~")) {
      const found = delimiter(source, i);
      push(found);
      i += found.count;
    } else {
      text += char;
      i += 1;
    }
  }
  flush();
  return pieces;
}

function matches(opener, closer) {
  if (opener.char !== closer.char || !opener.opens) return false;
  if (opener.char === "~") return opener.count === 2 && closer.count === 2;
  const isBoth = opener.closes || closer.opens;
  return !(isBoth && (opener.count + closer.count) % 3 === 0 && (opener.count % 3 || closer.count % 3));
}

function wrapped(pieces, opener, closer, size) {
  const tag = pieces[opener].char === "~" ? "s" : size === 2 ? "strong" : "em";
  const inner = pieces.slice(opener + 1, closer).map(nodeOf);
  return { node: element(tag, {}, ...inner) };
}

const nodeOf = (piece) => piece.node ?? document.createTextNode(piece.char.repeat(piece.count));

/** The delimiter algorithm of CommonMark, on a list of pieces. */
function emphasise(pieces) {
  for (let closer = 0; closer < pieces.length;) {
    const piece = pieces[closer];
    if (piece.node || !piece.closes) {
      closer += 1;
      continue;
    }
    let opener = closer - 1;
    while (opener >= 0 && (pieces[opener].node || !matches(pieces[opener], piece))) opener -= 1;
    if (opener < 0) {
      // Nothing opens it: it stays as text, so that no later search looks at it again.
      if (!piece.opens) pieces[closer] = { node: nodeOf(piece) };
      closer += 1;
      continue;
    }
    const size = pieces[opener].count >= 2 && piece.count >= 2 ? 2 : 1;
    const made = wrapped(pieces, opener, closer, size);
    const before = { ...pieces[opener], count: pieces[opener].count - size };
    const after = { ...piece, count: piece.count - size };
    const replacement = [before.count > 0 ? before : null, made, after.count > 0 ? after : null].filter(Boolean);
    pieces.splice(opener, closer - opener + 1, ...replacement);
    closer = opener + (before.count > 0 ? 2 : 1);
  }
  return pieces;
}

/** DOM nodes of one line or paragraph of Markdown. */
export function inline(source) {
  return emphasise(cut(source)).map(nodeOf);
}
