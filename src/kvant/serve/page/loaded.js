// What is in memory now, asked for every two seconds while it is looked at.

import { json, problemBox } from "./api.js";
import { announce, button, byId, el, plain, until } from "./dom.js";
import { bytes } from "./units.js";
import { facts } from "./cards.js";

const EVERY_MS = 2000;
let timer = null;

/** Begin or end looking. */
export function watchLoaded(on) {
  clearTimeout(timer);
  timer = null;
  if (on) look();
}

async function look() {
  clearTimeout(timer);
  timer = null;
  let wait = EVERY_MS;
  try {
    if (!document.hidden) show(await status());
  } catch (problem) {
    byId("loaded-room").replaceChildren(problemBox(problem, look));
    if (problem.kind === "key") return;
    wait = 3 * EVERY_MS;
  }
  if (!byId("panel-loaded").hidden && timer === null) timer = setTimeout(look, wait);
}

/** The gateway's status; with a key that may not see it, what Ollama's API tells. */
async function status() {
  try {
    return await json("/kvant/status");
  } catch (problem) {
    if (problem.status !== 403 && problem.status !== 404) throw problem;
  }
  const { models } = await json("/api/ps");
  return {
    models: models.map((model) => ({
      name: plain(model.name), pid: 1, context: model.context_length, predicted_bytes: model.size, expires_at: model.expires_at,
    })),
    predicted_bytes: models.reduce((sum, model) => sum + model.size, 0),
  };
}

function show(now) {
  const { models } = now;
  const sum = (name) => models.reduce((total, model) => total + (model[name] ?? 0), 0);
  const focused = document.activeElement?.dataset?.model;
  byId("loaded-empty").hidden = models.length > 0;
  byId("loaded-room").replaceChildren(
    now.limit_bytes ? memoryBar(now) : "",
    facts([
      ["Answering now", models[0]?.running === undefined && models.length ? null : String(sum("running"))],
      ["Waiting", models[0]?.waiting === undefined && models.length ? null : String(sum("waiting"))],
      ["Gateway itself", now.resident_bytes ? bytes(now.resident_bytes) : null],
    ]),
    el("div", { class: "grid" }, models.map(modelNode)));
  if (focused) [...document.querySelectorAll("[data-model]")].find((node) => node.dataset.model === focused)?.focus();
}

function memoryBar({ models, limit_bytes: limit, predicted_bytes: used }) {
  const bar = el("div", { class: "types memory", "aria-hidden": "true" });
  models.forEach((model, i) => {
    const part = el("span", { class: `t${i % 6}`, title: model.name });
    part.style.flexGrow = String(model.predicted_bytes);
    bar.append(part);
  });
  const free = el("span", { class: "free" });
  free.style.flexGrow = String(Math.max(0, limit - used));
  bar.append(free);
  return el("div", { class: "card" }, el("h3", {}, "Memory for models"), bar,
    el("p", { class: "note" }, `${bytes(used)} used of ${bytes(limit)}, ${bytes(Math.max(0, limit - used))} free (as predicted when models are loaded)`));
}

function modelNode(model) {
  const loaded = model.pid > 0;
  const busy = model.running > 0;
  return el("article", { class: "card", "aria-label": model.name },
    el("h3", {}, model.name, " ", el("span", { class: busy ? "badge busy" : "badge" }, !loaded ? "loading" : busy ? "in use" : "idle")),
    facts([
      ["Memory", model.resident_bytes ? `${bytes(model.resident_bytes)} now` : null],
      ["Predicted", bytes(model.predicted_bytes)],
      ["Context", loaded ? `${model.context.toLocaleString("en")} tokens a request` : null],
      ["Answering", model.running === undefined ? null : String(model.running)],
      ["Waiting", model.waiting === undefined ? null : String(model.waiting)],
      ["Unloads itself", loaded ? (busy ? "not while in use" : until(model.expires_at)) : null],
    ]),
    loaded ? el("div", { class: "row end" }, button("Unload", (event) => unload(model.name, event.target), { "data-model": model.name, "aria-label": `Unload ${model.name}` })) : null);
}

async function unload(name, node) {
  node.disabled = true;
  try {
    await json("/api/generate", { body: { model: name, keep_alive: 0, stream: false } });
    announce(`${name} is unloaded.`);
  } catch (problem) {
    node.replaceWith(problemBox(problem, null));
    return;
  }
  byId("tab-loaded").focus();
  look();
}
