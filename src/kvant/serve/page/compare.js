// One prompt, two variants, side by side.

import { problemBox } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { common, words } from "./diff.js";
import { brief, fillSelect, lossOf, refreshCards } from "./models.js";
import { answer, optionsFrom, perFrame, statsWords } from "./stream.js";

const SIDES = ["a", "b"];
const FIELDS = { temperature: "compare-temperature", num_predict: "compare-max", seed: "compare-seed" };
let running = null;
let texts = { a: null, b: null };

/** Set the part up. */
export function setUpCompare() {
  byId("compare-form").onsubmit = (event) => { event.preventDefault(); run(); };
  byId("compare-prompt").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); run(); }
  };
  byId("compare-stop").onclick = stopCompare;
  byId("compare-marks").onchange = mark;
  SIDES.forEach((side, nth) => {
    byId(`compare-${side}`).onchange = () => showFacts(side);
    document.addEventListener("kvant:models", () => { fillSelect(byId(`compare-${side}`), nth); showFacts(side); });
  });
}

/** Called when the part is shown: what was measured may be told now. */
export async function showCompare() {
  await refreshCards().catch(() => {});
  SIDES.forEach(showFacts);
}

/** Stop both answers; returns whether there was one. */
export function stopCompare() {
  running?.abort();
  return running !== null;
}

function showFacts(side) {
  const name = byId(`compare-${side}`).value;
  const lost = lossOf(name) ?? "not measured";
  byId(`facts-${side}`).textContent = name ? `${brief(name)} · ${lost}` : "";
}

async function run() {
  const prompt = byId("compare-prompt").value.trim();
  if (!prompt || running || !byId("compare-a").value) return;
  running = new AbortController();
  texts = { a: null, b: null };
  byId("compare-run").hidden = true;
  byId("compare-stop").hidden = false;
  byId("compare-summary").textContent = "";
  byId("compare-results").hidden = false;
  for (const side of SIDES) reset(side);
  announce("Comparing.");
  if (byId("compare-turns").checked) for (const side of SIDES) await one(side, prompt);
  else await Promise.all(SIDES.map((side) => one(side, prompt)));
  running = null;
  byId("compare-run").hidden = false;
  byId("compare-stop").hidden = true;
  mark();
}

function reset(side) {
  byId(`text-${side}`).replaceChildren();
  byId(`name-${side}`).textContent = byId(`compare-${side}`).value;
  byId(`stats-${side}`).replaceChildren();
}

async function one(side, prompt) {
  const [text, stats] = [byId(`text-${side}`), byId(`stats-${side}`)];
  if (running.signal.aborted) return;
  const show = perFrame((so) => {
    if (texts[side] === null) text.textContent = so.text;
    stats.textContent = so.state === "waiting" ? "Waiting for the model." : statsWords(so.stats);
  });
  const system = byId("compare-system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  const fields = Object.fromEntries(Object.entries(FIELDS).map(([name, id]) => [name, byId(id)]));
  try {
    const so = await answer({
      model: byId(`name-${side}`).textContent, messages, options: optionsFrom(fields), signal: running.signal, show,
    });
    texts[side] = so.text;
    text.textContent = so.text;
    stats.textContent = `${so.state === "stopped" ? "Stopped · " : ""}${statsWords(so.stats)}`;
  } catch (problem) {
    texts[side] = problem.so?.text ?? "";
    stats.replaceChildren(problemBox(problem, null));
  }
}

/** Mark the words that one text has and the other has not, if both are there. */
function mark() {
  if (texts.a === null || texts.b === null || running) return;
  const [a, b] = [words(texts.a), words(texts.b)];
  const { inA, inB, prefix } = common(a, b);
  paint(byId("text-a"), a, inA);
  paint(byId("text-b"), b, inB);
  const same = inA.reduce((sum, one) => sum + one, 0);
  const summary = byId("compare-summary");
  if (!a.length && !b.length) summary.textContent = "Both answers are empty.";
  else if (same === a.length && same === b.length) summary.textContent = "Both texts are the same, word by word.";
  else {
    const share = Math.round((100 * 2 * same) / (a.length + b.length));
    summary.textContent = `The first ${prefix} ${prefix === 1 ? "word is" : "words are"} the same; ${share} % of all words are in both texts.`;
  }
  announce(summary.textContent);
}

/** Write words, runs of those that differ inside a mark. */
function paint(node, list, isCommon) {
  node.replaceChildren();
  const on = byId("compare-marks").checked;
  for (let i = 0; i < list.length;) {
    let end = i;
    while (end < list.length && isCommon[end] === isCommon[i]) end += 1;
    const text = list.slice(i, end).join("");
    const space = text.match(/^\s*/)[0];
    if (on && !isCommon[i]) node.append(space, el("mark", {}, text.slice(space.length)));
    else node.append(text);
    i = end;
  }
}
