// What every model is, and what was measured of it.

import { problemBox } from "./api.js";
import { button, byId, el } from "./dom.js";
import { bytes, weights } from "./units.js";
import { refreshCards } from "./models.js";
import { plotFigure } from "./plot.js";

const SHADES = 6;

/** Ask for the cards and show them. */
export async function showCards(chatWith) {
  const room = byId("cards-room");
  if (!room.childElementCount) room.replaceChildren(el("p", { class: "note" }, "Reading the models."));
  try {
    const { cards, plots } = await refreshCards();
    byId("cards-empty").hidden = cards.length > 0;
    room.replaceChildren(...plots.map(plotFigure), el("div", { class: "grid" }, cards.map((card) => cardNode(card, chatWith))));
  } catch (problem) {
    room.replaceChildren(problemBox(problem, () => showCards(chatWith)));
  }
}

function cardNode(card, chatWith) {
  const canChat = card.capabilities.includes("completion");
  return el("article", { class: "card", "aria-label": card.name },
    el("h3", {}, card.name),
    el("p", { class: "headline" }, el("strong", {}, card.quantization), ` · ${bytes(card.size_bytes)}`,
      card.bpw ? ` · ${card.bpw.toFixed(2)} bits per weight` : ""),
    typesBar(card),
    facts([
      ["Architecture", card.architecture],
      ["Parameters", weights(card.parameters)],
      ["Context", card.context_length ? `${card.context_length.toLocaleString("en")} tokens` : "not told"],
      ["Chat template", card.has_template ? "yes" : "no"],
      ["Memory", card.ram_bytes ? `${bytes(card.ram_bytes)}, predicted` : null],
      ["Can", card.capabilities.join(", ")],
      ["Licence", card.licence ?? "not told"],
      ["Made from", card.base],
      ["Source", card.source],
    ]),
    passportNode(card),
    canChat ? el("div", { class: "row end" }, button("Chat with it", () => chatWith(card.name), { "aria-label": `Chat with ${card.name}` })) : null);
}

/** Rows of a name and a value; those without a value are left out. */
export function facts(rows) {
  return el("dl", { class: "facts" }, rows.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** A bar of block types by bytes, with a legend that says the same in words. */
function typesBar({ blocks }) {
  const total = blocks.reduce((sum, block) => sum + block.bytes, 0);
  if (!total) return null;
  const share = (block) => (100 * block.bytes) / total;
  const bar = el("div", { class: "types", "aria-hidden": "true" });
  blocks.forEach((block, i) => {
    const part = el("span", { class: `t${i % SHADES}` });
    part.style.flexGrow = String(Math.max(share(block), 0.6));
    bar.append(part);
  });
  return el("div", {}, bar, el("ul", { class: "legend", "aria-label": "Block types by bytes" }, blocks.slice(0, 8).map((block, i) =>
    el("li", {}, el("span", { class: `swatch t${i % SHADES}`, "aria-hidden": "true" }), `${block.type} ${share(block) >= 1 ? share(block).toFixed(0) : "< 1"} %`))));
}

function passportNode({ passport, loss }) {
  if (!passport) return el("p", { class: "note passport" }, "Not measured: there is no passport for this file.");
  return el("div", { class: "passport" },
    el("h4", {}, "Passport"),
    facts([
      ...loss.rows,
      ["Memory", passport.rss_bytes ? bytes(passport.rss_bytes) : null],
      ["Measured on", [passport.text, passport.machine].filter(Boolean).join("; ")],
      ["Base", hash(passport.base_sha256)],
      ["Text", hash(passport.text_sha256)],
    ]));
}

const hash = (value) => (value ? el("code", { title: value }, value.slice(0, 16)) : null);
