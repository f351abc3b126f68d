// Everything on the page is made here, by element and text node. No string ever becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: attributes (`on…` are listeners, true is an empty attribute, null is none), then children. */
export function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.setAttribute("class", value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A button with a name. */
export function button(label, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, label);
}

/** Say something to a screen reader, without moving anything. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** A button that copies a text and says so. */
export function copyButton(text, label = "Copy") {
  const node = button(label, async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      done = false;
    }
    node.textContent = done ? "Copied" : "Not allowed";
    announce(done ? "Copied." : "The browser does not allow copying.");
    setTimeout(() => { node.textContent = label; }, 1600);
  }, { class: "quiet" });
  return node;
}

/** A time in the future for people. */
export function until(time) {
  if (!time) return "never";
  const seconds = (new Date(time).getTime() - Date.now()) / 1000;
  if (seconds > 86400 * 365) return "never";
  if (seconds <= 0) return "now";
  if (seconds < 90) return `in ${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `in ${Math.round(seconds / 60)} min` : `in ${Math.round(seconds / 3600)} h`;
}

/** A model's name without the tag that goes without saying. */
export const plain = (name) => name.replace(/:latest$/, "");
