// Run the page's Markdown over CommonMark's examples: node commonmark.mjs DIRECTORY SPEC, where DIRECTORY holds the page's
// modules. Prints JSON: [{number, section, passes, made, wanted}].
//
// Compared is HTML after what the page does otherwise on purpose: headings are two levels lower, code stands in a box with
// a button, items are never paragraphs, links have no titles of their own.
import { createRequire } from "node:module";
import path from "node:path";

const [directory, spec] = process.argv.slice(2).map((name) => path.resolve(name));
const { render } = await import(path.join(directory, "markdown.js"));
const examples = createRequire(import.meta.url)(spec).tests;
const VOID = new Set(["br", "hr"]);
const BLOCK = "blockquote|div|h[1-6]|hr|li|ol|p|pre|table|tbody|td|th|thead|tr|ul";

class Node {
  constructor(tag) {
    this.tag = tag;
    this.attributes = {};
    this.childNodes = [];
  }
  get lastChild() { return this.childNodes.at(-1); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener() {}
  append(...nodes) { this.childNodes.push(...nodes.map((node) => (typeof node === "string" ? { text: node } : node))); }
}

globalThis.document = { createElement: (tag) => new Node(tag), createTextNode: (text) => ({ text }) };

const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

function html(node) {
  if (node.text !== undefined) return escape(node.text);
  const inner = () => node.childNodes.map(html).join("");
  if (node.attributes.class === "code") {
    const [head, pre] = node.childNodes;
    const language = head.childNodes[0].childNodes[0].text;
    const kind = language === "text" ? "" : ` class="language-${escape(language.split(" ")[0])}"`;
    return `<pre><code${kind}>${escape(pre.childNodes[0].childNodes[0]?.text ?? "")}</code></pre>`;
  }
  const kept = ["href", "start"].filter((name) => name in node.attributes);
  const start = `<${node.tag}${kept.map((name) => ` ${name}="${escape(String(node.attributes[name]))}"`).join("")}>`;
  return VOID.has(node.tag) ? start : `${start}${inner()}</${node.tag}>`;
}

function normal(text) {
  return text
    .replace(/<(\/?)h([1-6])>/g, (_, end, level) => `<${end}h${Math.min(6, Number(level) + 2)}>`)
    .replace(/ title="[^"]*"/g, "")
    .replace(/href="(https?:[^"]*)"/g, (_, address) => `href="${escape(new URL(address.replaceAll("&amp;", "&")).href)}"`);
}

const comparable = (text) => text
  .replaceAll(" />", ">")
  .replace(/\n<\/code><\/pre>/g, "</code></pre>")
  .replace(new RegExp(`\\s*(</?(?:${BLOCK})(?: [^>]*)?>)\\s*`, "g"), "$1")
  .replace(/<li><p>([^]*?)<\/p>/g, "<li>$1")
  .replace(/ *<br>\n?/g, "<br>")
  .replaceAll(" \n", "\n");

const found = examples.map(({ number, section, markdown, html: wanted }) => {
  const container = new Node("div");
  render(container, markdown.replaceAll("→", "\t"));
  const made = comparable(container.childNodes.map(html).join(""));
  const truth = comparable(normal(wanted.replaceAll("→", "\t")));
  return { number, section, passes: made === truth, made, wanted: truth };
});
process.stdout.write(JSON.stringify(found));
