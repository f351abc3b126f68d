// Markdown to nodes. What it does not know stays text; only http(s) links become links; HTML is text like any other.
// Blocks are kept while they do not change, so a long answer that grows is not drawn anew with every token.

import { copyButton, el } from "./dom.js";

const MAX_DEPTH = 6;
const REACH = 2000; // characters in which the end of an emphasis is looked for: work stays linear
// No two loops of an expression read the same characters one after the other: tests/hostile/test_regular_expressions.py.
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])(?: (.*))?$/s;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`~][^`]*)?$/;
const HEADING = /^ {0,3}(#{1,6}) (.*)$/;
const DIVIDER = /^\|?(?: *:?-+:? *\|)+ *(?::?-+:?)?$/;

/** Show a text in an element, changing only the blocks that differ from what it shows already. */
export function render(container, text) {
  const sources = blocks(text.slice(0, 1 << 20));
  const shown = container.shownBlocks ?? [];
  let same = 0;
  while (same < shown.length && same < sources.length && shown[same] === sources[same]) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const source of sources.slice(same)) container.append(block(source, 0));
  container.shownBlocks = sources;
}

/** Split a text into the sources of its blocks. */
function blocks(text) {
  const found = [];
  const rows = text.replace(/\r\n?/g, "\n").split("\n");
  for (let i = 0; i < rows.length;) {
    if (!rows[i].trim()) { i += 1; continue; }
    const end = endOfBlock(rows, i);
    found.push(rows.slice(i, end).join("\n"));
    i = end;
  }
  return found;
}

function endOfBlock(rows, start) {
  const fence = rows[start].match(FENCE);
  let i = start + 1;
  if (fence) {
    while (i < rows.length && !closes(rows[i], fence[1])) i += 1;
    return Math.min(i + 1, rows.length);
  }
  if (HEADING.test(rows[start]) || RULE.test(rows[start])) return i;
  const kind = kindOf(rows, start);
  if (kind === "list") return endOfList(rows, start);
  while (i < rows.length && rows[i].trim() && !FENCE.test(rows[i]) && !HEADING.test(rows[i]) && !RULE.test(rows[i])) {
    if (kind === "table" ? !rows[i].includes("|") : kindOf(rows, i) !== kind) break;
    i += 1;
  }
  return i;
}

/** A list goes on through indented rows, items of its kind, and single blank rows between those. */
function endOfList(rows, start) {
  const [, indent, marker] = rows[start].match(ITEM);
  const ordered = /\d/.test(marker);
  let fence = null;
  let i = start + 1;
  for (; i < rows.length; i += 1) {
    const at = rows[i].trim() ? i : i + 1;
    const row = rows[at] ?? "";
    const inner = row.match(/^ {2,}(`{3,}|~{3,})/);
    if (fence) {
      if (closes(rows[i], fence)) fence = null;
      else if (rows[i].trim() && !/^ {2,}/.test(rows[i])) break;
      continue;
    }
    if (!row.trim()) break;
    const item = row.match(ITEM);
    if (item && item[1].length <= indent.length + 1 && (/\d/.test(item[2]) !== ordered || RULE.test(row))) break;
    if (!item && !/^ {2,}/.test(row) && (at > i || HEADING.test(row) || FENCE.test(row) || RULE.test(row))) break;
    if (inner && at === i) fence = inner[1];
  }
  return i;
}

const closes = (row, fence) => row.trim().length >= fence.length && row.trim().replaceAll(fence[0], "") === "";

function kindOf(rows, i) {
  if (/^ {0,3}>/.test(rows[i])) return "quote";
  if (ITEM.test(rows[i])) return "list";
  if (rows[i].includes("|") && DIVIDER.test((rows[i + 1] ?? "").trim())) return "table";
  return "text";
}

/** Make a block's element. */
function block(source, depth) {
  const rows = source.split("\n");
  const fence = rows[0].match(FENCE);
  if (fence) return codeBlock(rows, fence);
  const heading = rows[0].match(HEADING);
  if (heading) return el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(title(heading[2])));
  if (RULE.test(rows[0]) && rows.length === 1) return el("hr");
  const kind = depth < MAX_DEPTH ? kindOf(rows, 0) : "text";
  if (kind === "quote") return quote(rows, depth);
  if (kind === "list") return list(rows, depth);
  if (kind === "table") return table(rows);
  return el("p", {}, inline(unindented(rows)));
}

/** A paragraph's text: its rows may be indented, which means nothing. */
const unindented = (rows) => rows.map((row) => row.trimStart()).join("\n");

/** A heading's text without the marks that may close it. */
function title(text) {
  const whole = text.trim();
  const bare = whole.slice(0, endBefore(whole, "#"));
  return !bare || bare.endsWith(" ") ? bare.trimEnd() : whole;
}

/** Where a text ends without the last of its characters that are among some. */
function endBefore(text, marks) {
  let end = text.length;
  while (end > 0 && marks.includes(text[end - 1])) end -= 1;
  return end;
}

function codeBlock(rows, fence) {
  const closed = rows.length > 1 && closes(rows.at(-1), fence[1]);
  const indent = rows[0].length - rows[0].trimStart().length;
  const kept = rows.slice(1, closed ? -1 : undefined);
  const code = kept.map((row) => row.slice(Math.min(indent, row.length - row.trimStart().length))).join("\n");
  const language = (fence[2] ?? "").trim().slice(0, 30);
  return el("div", { class: "code" },
    el("div", { class: "code-head" }, el("span", {}, language || "text"), copyButton(() => code, "Copy code")),
    el("pre", { tabindex: "0" }, el("code", {}, code)));
}

function quote(rows, depth) {
  const inner = rows.map((row) => row.replace(/^ {0,3}> ?/, "")).join("\n");
  return el("blockquote", {}, blocks(inner).map((source) => block(source, depth + 1)));
}

function list(rows, depth) {
  const first = rows[0].match(ITEM);
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  let width = 0;
  for (const row of rows) {
    const match = row.match(ITEM);
    if (match && match[1].length <= indent + 1) {
      width = match[1].length + match[2].length + 1;
      items.push([(match[3] ?? "").trimStart()]);
    } else {
      items.at(-1).push(row.slice(Math.min(width, row.length - row.trimStart().length)));
    }
  }
  const start = ordered && parseInt(first[2], 10) !== 1 ? { start: parseInt(first[2], 10) } : {};
  return el(ordered ? "ol" : "ul", start, items.map((lines) => item(lines.join("\n"), depth)));
}

function item(source, depth) {
  const inner = blocks(source);
  if (inner.length && kindOf(inner[0].split("\n"), 0) === "text" && !FENCE.test(inner[0]) && !HEADING.test(inner[0])) {
    return el("li", {}, inline(unindented(inner[0].split("\n"))), inner.slice(1).map((part) => block(part, depth + 1)));
  }
  return el("li", {}, inner.map((part) => block(part, depth + 1)));
}

function table(rows) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").slice(0, 30).map((cell) => cell.trim());
  const sides = cells(rows[1]).map((c) => (/^:.*:$/.test(c) ? "center" : /:$/.test(c) ? "right" : null));
  const line = (tag, row) => el("tr", {}, cells(row).map((cell, i) =>
    el(tag, { class: sides[i] ? `to-${sides[i]}` : null, scope: tag === "th" ? "col" : null }, inline(cell))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, line("th", rows[0])), el("tbody", {}, rows.slice(2).map((row) => line("td", row)))));
}

const LINK = /\[([^[\]]{1,500})\]\((https?:\/\/[^\s()<>"]{1,2000}(?:\([^\s()<>"]{0,200}\))?) *(?:"[^"]{0,200}")?\)/y;
const BARE = /https?:\/\/[^\s<>"'`|\\]{1,2000}/y;
const NEXT = /[\\`*_~[h\n]/g;

/** Make the nodes of a text inside a block. */
function inline(text, depth = 0) {
  const nodes = [];
  const barren = {}; // for each mark, up to where there is none that could end an emphasis
  let from = 0;
  let i = 0;
  const put = (start, end, node) => {
    if (start > from) nodes.push(text.slice(from, start));
    if (node !== null) nodes.push(node);
    from = i = end;
  };
  for (;;) {
    NEXT.lastIndex = i;
    const hit = NEXT.exec(text);
    if (!hit) break;
    i = hit.index;
    const made = depth < MAX_DEPTH ? span(text, i, depth, barren) : null;
    if (made) put(i, made.end, made.node);
    else i += 1;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

/** Make what begins at a place of a text; null if nothing does. */
function span(text, i, depth, barren) {
  const c = text[i];
  if (c === "\\" && text[i + 1] === "\n") return { end: i + 2, node: el("br") };
  if (c === "\\") return /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "") ? { end: i + 2, node: text[i + 1] } : null;
  if (c === "\n") return { end: i + 1, node: text.slice(i - 2, i) === "  " ? el("br") : "\n" };
  if (c === "`") return codeSpan(text, i);
  if (c === "[") return link(text, i, depth);
  if (c === "h") return bareLink(text, i);
  const mark = text[i + 1] === c ? c + c : c;
  if (c === "~" && mark.length < 2) return null;
  const end = closing(text, i, mark, barren);
  if (end < 0) return null;
  const tag = c === "~" ? "del" : mark.length === 2 ? "strong" : "em";
  return { end: end + mark.length, node: el(tag, {}, inline(text.slice(i + mark.length, end), depth + 1)) };
}

function codeSpan(text, i) {
  let n = 1;
  while (text[i + n] === "`") n += 1;
  const ticks = "`".repeat(n);
  for (let end = text.indexOf(ticks, i + n); end >= 0 && end < i + REACH; end = text.indexOf(ticks, end)) {
    let length = n;
    while (text[end + length] === "`") length += 1;
    if (length === n) return { end: end + n, node: el("code", {}, unpadded(text.slice(i + n, end).replaceAll("\n", " "))) };
    end += length;
  }
  return { end: i + n, node: ticks };
}

/** Code without the one space that may stand on either side of it. */
const unpadded = (code) => (code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code);

function link(text, i, depth) {
  LINK.lastIndex = i;
  const match = LINK.exec(text);
  return match && { end: LINK.lastIndex, node: anchor(match[2], inline(match[1], depth + 1)) };
}

function bareLink(text, i) {
  BARE.lastIndex = i;
  const match = i > 0 && /\w/.test(text[i - 1]) ? null : BARE.exec(text);
  if (!match) return null;
  const address = match[0].slice(0, endBefore(match[0], ".,;:!?)]*_"));
  return { end: i + address.length, node: anchor(address, [address]) };
}

function anchor(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return document.createTextNode(address);
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return document.createTextNode(address);
  return el("a", { href: url.href, rel: "noopener noreferrer", target: "_blank", title: url.href.slice(0, 300) }, children);
}

/** Where an emphasis ends; -1 if nowhere near. */
function closing(text, i, mark, barren) {
  const start = i + mark.length;
  const word = /[\p{L}\p{N}]/u;
  if (!text[start] || /\s/.test(text[start])) return -1;
  if (mark[0] === "_" && word.test(text[i - 1] ?? "")) return -1;
  const limit = Math.min(text.length, i + REACH);
  for (let end = text.indexOf(mark, Math.max(start + 1, barren[mark] ?? 0)); end >= 0 && end < limit; end = text.indexOf(mark, end + 1)) {
    if (/\s/.test(text[end - 1])) continue;
    if (mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark)) {
      end += text[end + 1] === mark ? 1 : 0;
      continue;
    }
    if (mark.length === 2 && text[end + 2] === mark[0]) end += 1;
    if (mark[0] === "_" && word.test(text[end + mark.length] ?? "")) continue;
    return end;
  }
  barren[mark] = limit;
  return -1;
}
