// The conversation. It lives in this tab alone and ends with it.

import { problemBox } from "./api.js";
import { announce, button, byId, copyButton, el } from "./dom.js";
import { render } from "./markdown.js";
import { brief, fillSelect, hasNone } from "./models.js";
import { answer, optionsFrom, perFrame, statsWords } from "./stream.js";

const STORE = "kvant.chat";
const SETTINGS = { temperature: "chat-temperature", num_predict: "chat-max", seed: "chat-seed" };

let turns = []; // { role, text, thinking?, stats?, model?, problem?, state? }
let running = null;

/** Set the part up. */
export function setUpChat() {
  restore();
  const input = byId("chat-input");
  byId("chat-form").onsubmit = (event) => { event.preventDefault(); send(); };
  input.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  };
  input.oninput = () => grow(input);
  byId("chat-stop").onclick = stopChat;
  byId("chat-clear").onclick = clear;
  byId("chat-model").onchange = showModel;
  document.addEventListener("kvant:models", () => {
    fillSelect(byId("chat-model"));
    showModel();
    draw();
  });
  for (const node of document.querySelectorAll("#chat-settings input, #chat-system")) node.oninput = keep;
  draw();
}

/** Choose a model and go on with it. */
export function chatWith(name) {
  byId("chat-model").value = name;
  showModel();
  byId("chat-input").focus();
}

/** Stop the answer; returns whether there was one. */
export function stopChat() {
  running?.abort();
  return running !== null;
}

const grow = (input) => { input.rows = Math.min(8, Math.max(1, input.value.split("\n").length)); };

function showModel() {
  byId("chat-model-facts").textContent = brief(byId("chat-model").value);
}

function clear() {
  stopChat();
  turns = [];
  keep();
  draw();
  byId("chat-input").focus();
  announce("The conversation is empty.");
}

function send() {
  const input = byId("chat-input");
  const text = input.value.trim();
  if (!text || running || !byId("chat-model").value) return;
  turns.push({ role: "user", text });
  input.value = "";
  grow(input);
  reply();
}

/** Have the model answer what was said last. */
async function reply() {
  const model = byId("chat-model").value;
  const system = byId("chat-system").value.trim();
  // A question that got no answer at all goes too: templates want turns to alternate.
  const messages = turns.filter((turn, i) => turn.text && !(turns[i + 1]?.problem && !turns[i + 1].text))
    .map((turn) => ({ role: turn.role, content: turn.text }));
  if (system) messages.unshift({ role: "system", content: system });
  const turn = { role: "assistant", text: "", model, state: "waiting" };
  turns.push(turn);
  running = new AbortController();
  draw();
  follow(true);
  announce("Answering.");
  const node = byId("chat-turns").lastElementChild;
  const show = perFrame(() => { if (node.isConnected) { update(node, turn); follow(false); } });
  try {
    await answer({
      model, messages, options: optionsFrom(fields()), signal: running.signal,
      show: (so) => { Object.assign(turn, so); show(); },
    });
    announce(turn.state === "stopped" ? "Stopped." : `Answered. ${statsWords(turn.stats)}`);
  } catch (problem) {
    turn.problem = problem.message;
    turn.state = "failed";
  }
  running = null;
  keep();
  draw();
  follow(false);
}

const fields = () => Object.fromEntries(Object.entries(SETTINGS).map(([name, id]) => [name, byId(id)]));

// Drawing

function draw() {
  const none = hasNone();
  byId("chat-turns").replaceChildren(...turns.map(turnNode));
  byId("chat-empty").hidden = turns.length > 0;
  byId("chat-empty-models").hidden = !none;
  byId("chat-empty-start").hidden = none;
  byId("chat-send").hidden = running !== null;
  byId("chat-send").disabled = none;
  byId("chat-stop").hidden = running === null;
  byId("chat-clear").disabled = turns.length === 0;
}

function turnNode(turn, index) {
  const mine = turn.role === "user";
  const node = el("li", { class: `turn ${mine ? "mine" : "theirs"}` },
    el("h3", { class: mine ? "hidden" : "who" }, mine ? "You" : turn.model ?? "Model"),
    mine ? null : el("details", { class: "thinking", hidden: true }, el("summary", {}, "Thoughts"), el("div", { class: "prose" })),
    el("div", { class: mine ? "said" : "prose answer" }, mine ? turn.text : null),
    el("div", { class: "below" }));
  if (!mine) update(node, turn);
  if (running === null) node.lastElementChild.append(...actions(turn, index, node));
  return node;
}

/** Show an answer as it is now. */
function update(node, turn) {
  const [thinking, prose] = [node.querySelector(".thinking"), node.querySelector(".answer")];
  if (turn.thinking) {
    thinking.hidden = false;
    render(thinking.lastElementChild, turn.thinking);
  }
  render(prose, turn.text);
  prose.classList.toggle("writing", turn.state === "writing");
  const below = node.querySelector(".below");
  if (turn.state === "waiting") below.replaceChildren(el("p", { class: "note waiting" }, "Waiting for the model. Loading it can take a while."));
  else if (turn.problem) below.replaceChildren(problemBox({ message: turn.problem }, () => again(turns.indexOf(turn))));
  else below.replaceChildren(el("p", { class: "note" }, [turn.state === "stopped" ? "Stopped · " : "", statsWords(turn.stats)].join("")));
}

function actions(turn, index, node) {
  if (turn.role === "user") return [button("Edit", () => edit(turn, index, node), { class: "quiet" }), copyButton(() => turn.text)];
  if (turn.problem) return [];
  return [copyButton(() => turn.text), button("Answer again", () => again(index), { class: "quiet" })];
}

/** Have an answer given anew; what came after it goes. */
function again(index) {
  if (running) return;
  turns.length = index;
  reply();
}

/** Turn a message into a field; saving it drops what came after. */
function edit(turn, index, node) {
  const input = el("textarea", { "aria-label": "Your message", rows: Math.min(10, turn.text.split("\n").length + 1), value: turn.text });
  const done = () => { draw(); byId("chat-input").focus(); };
  const save = () => {
    const text = input.value.trim();
    if (!text || running) return;
    turns.length = index;
    turns.push({ role: "user", text });
    byId("chat-input").focus();
    reply();
  };
  input.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); done(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
  };
  node.replaceChildren(el("div", { class: "editing" }, input,
    el("div", { class: "row" }, button("Send", save, { class: "primary" }), button("Leave as it was", done, { class: "quiet" }))));
  input.focus();
}

/** Keep the end in view, unless the reader has scrolled up. */
function follow(force) {
  const room = document.scrollingElement;
  if (force || room.scrollHeight - room.scrollTop - room.clientHeight < 160) room.scrollTop = room.scrollHeight;
}

// Keeping

function keep() {
  try {
    const settings = Object.fromEntries(Object.entries(fields()).map(([name, field]) => [name, field.value]));
    sessionStorage.setItem(STORE, JSON.stringify({ turns, settings, system: byId("chat-system").value }));
  } catch {
    // Full or off: the conversation stays in memory.
  }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
    if (!kept) return;
    turns = kept.turns.filter((turn) => typeof turn.text === "string" && ["user", "assistant"].includes(turn.role));
    byId("chat-system").value = kept.system ?? "";
    for (const [name, field] of Object.entries(fields())) field.value = kept.settings?.[name] ?? field.value;
  } catch {
    turns = [];
  }
}
