// Which models there are, for every part of the page.

import { json } from "./api.js";
import { el, plain } from "./dom.js";
import { bytes } from "./units.js";

let known = [];
let asked = false;
let cards = new Map();

/** The models that can chat, the newest first. */
export const chatModels = () => known.filter((model) => (model.capabilities ?? ["completion"]).includes("completion"));

/** Whether the gateway has said that there is no model to chat with. */
export const hasNone = () => asked && chatModels().length === 0;

/** What was measured of a model; undefined if nothing was. */
export const lossOf = (name) => cards.get(plain(name))?.loss?.brief;

/** Ask for the models again. */
export async function refresh() {
  const { models } = await json("/api/tags");
  known = models.map((model) => ({ ...model, name: plain(model.name) }));
  asked = true;
  document.dispatchEvent(new Event("kvant:models"));
  return known;
}

/** Ask for the cards: { cards, plots }. */
export async function refreshCards() {
  const answer = await json("/api/kvant/cards");
  cards = new Map(answer.cards.map((card) => [plain(card.name), card]));
  return answer;
}

/** One line about a model. */
export function brief(name) {
  const model = known.find((other) => other.name === name);
  if (!model) return "";
  const { details } = model;
  return [bytes(model.size), details.quantization_level, `${details.parameter_size} parameters`].join(" · ");
}

/** Fill a select with the models that can chat; keeps the choice, or takes the `nth`. */
export function fillSelect(select, nth = 0) {
  const models = chatModels();
  const chosen = select.value;
  select.replaceChildren(...models.map((model) => el("option", { value: model.name },
    [model.name, bytes(model.size), model.details.quantization_level].filter((part, i) => i < 2 || !model.name.includes(part)).join(" · "))));
  if (models.some((model) => model.name === chosen)) select.value = chosen;
  else if (models.length) select.selectedIndex = Math.min(nth, models.length - 1);
  select.disabled = models.length === 0;
}
