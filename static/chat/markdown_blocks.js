// Cuts Markdown into blocks: plain objects with lines of text, no DOM. An unclosed fence reaches to the end.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}(?=\S)| *$| (?= {4,}))/;
const INDENTED = /^(?: {4}|\t)/;
const UNDERLINE = /^ {0,3}(=+|-+)\s*$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 20;

const isBlank = (line) => /^\s*$/.test(line);

function startsBlock(lines, i) {
  const line = lines[i];
  const item = ITEM.exec(line);
  // Inside a paragraph only a bullet with text or a list that begins with 1 may start.
  const isItem = item && line.length > item[0].length && (!/^\d/.test(item[2]) || /^1[.)]/.test(item[2]));
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isItem;
}

function fence(lines, i) {
  const [, mark, language] = FENCE.exec(lines[i]);
  const indent = /^ */.exec(lines[i])[0].length;
  const close = new RegExp(`^ {0,3}${mark[0] === "~" ? "~" : "`"}{${mark.length},}\\s*$`);
  let end = i + 1;
  while (end < lines.length && !close.test(lines[end])) end += 1;
  const strip = new RegExp(`^ {0,${indent}}`);
  // What follows the last line break of an unclosed fence is no line yet.
  const last = end === lines.length && lines[end - 1] === "" ? end - 1 : end;
  const code = lines.slice(i + 1, last).map((line) => line.replace(strip, ""));
  return { block: { kind: "code", language, code: code.join("\n") }, next: end + 1 };
}

function cells(line) {
  const found = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1").split(/(?<!\\)\|/);
  return found.map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, i) {
  if (!lines[i].includes("|") || i + 1 >= lines.length || !TABLE_RULE.test(lines[i + 1])) return null;
  const head = cells(lines[i]);
  const rules = cells(lines[i + 1]);
  if (head.length !== rules.length) return null;
  const align = rules.map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : rule.startsWith(":") ? "left" : ""));
  const rows = [];
  let next = i + 2;
  while (next < lines.length && !isBlank(lines[next]) && !startsBlock(lines, next)) rows.push(cells(lines[next++]));
  return { block: { kind: "table", head, align, rows }, next };
}

function quote(lines, i, depth) {
  const inner = [];
  let next = i;
  while (next < lines.length && (QUOTE.test(lines[next]) || (!isBlank(lines[next]) && !startsBlock(lines, next)))) {
    inner.push(lines[next++].replace(QUOTE, ""));
  }
  return { block: { kind: "quote", blocks: blocks(inner, depth + 1) }, next };
}

function list(lines, i, depth) {
  const [, , mark] = ITEM.exec(lines[i]);
  const isOrdered = /\d/.test(mark);
  const kin = mark.at(-1);
  const items = [];
  let isLoose = false;
  let next = i;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[2].at(-1) !== kin || RULE.test(lines[next])) break;
    const width = item[3].trim() === "" && item[3].length ? item[0].length : item[0].length + 1;
    const inner = [lines[next].slice(item[0].length)];
    next += 1;
    let wasBlank = false;
    while (next < lines.length) {
      const line = lines[next];
      if (isBlank(line)) {
        wasBlank = true;
        inner.push("");
      } else if (/^ */.exec(line)[0].length >= width) {
        inner.push(line.slice(width));
        wasBlank = false;
      } else if (!wasBlank && !ITEM.test(line) && !startsBlock(lines, next)) {
        inner.push(line.trimStart());
      } else {
        break;
      }
      next += 1;
    }
    let blanks = 0;
    while (inner.length > 1 && inner.at(-1) === "") {
      inner.pop();
      blanks += 1;
    }
    const made = blocks(inner, depth + 1);
    const goesOn = next < lines.length && ITEM.exec(lines[next])?.[2].at(-1) === kin;
    isLoose ||= (blanks > 0 && goesOn) || (made.length > 1 && inner.includes("") && made.some((each, n) => n && each.kind === "paragraph"));
    items.push(made);
  }
  return { block: { kind: "list", isOrdered, start: parseInt(mark, 10), isLoose, items }, next };
}

function paragraph(lines, i) {
  let next = i + 1;
  while (next < lines.length && !isBlank(lines[next])) {
    const underline = UNDERLINE.exec(lines[next]);
    if (underline) {
      const text = lines.slice(i, next).map((line) => line.trimStart()).join("\n").trimEnd();
      return { block: { kind: "heading", level: underline[1][0] === "=" ? 1 : 2, text }, next: next + 1 };
    }
    if (startsBlock(lines, next)) break;
    next += 1;
  }
  const text = lines.slice(i, next).map((line) => line.trimStart()).join("\n").trimEnd();
  return { block: { kind: "paragraph", text }, next };
}

function indented(lines, i) {
  let next = i;
  while (next < lines.length && (INDENTED.test(lines[next]) || isBlank(lines[next]))) next += 1;
  const code = lines.slice(i, next).map((line) => line.replace(INDENTED, "")).join("\n").trimEnd();
  return { block: { kind: "code", language: "", code }, next };
}

/** Blocks of `lines`; each knows `from` and `to`, the lines it was made of. */
export function blocks(lines, depth = 0) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    if (isBlank(lines[i])) {
      i += 1;
      continue;
    }
    const { block, next } = one(lines, i, depth);
    found.push({ ...block, from: i, to: Math.min(next, lines.length) });
    i = next;
  }
  return found;
}

function one(lines, i, depth) {
  const line = lines[i];
  if (depth > MAX_DEPTH) return { block: { kind: "paragraph", text: lines.slice(i).join("\n") }, next: lines.length };
  if (FENCE.test(line)) return fence(lines, i);
  if (INDENTED.test(line)) return indented(lines, i);
  const heading = HEADING.exec(line);
  if (heading) return { block: { kind: "heading", level: heading[1].length, text: heading[2] ?? "" }, next: i + 1 };
  if (RULE.test(line)) return { block: { kind: "rule" }, next: i + 1 };
  if (QUOTE.test(line)) return quote(lines, i, depth);
  if (ITEM.test(line)) return list(lines, i, depth);
  return table(lines, i) ?? paragraph(lines, i);
}
