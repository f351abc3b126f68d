// One answer of a model as it comes, with its speed.

import { lines } from "./api.js";
import { digits } from "./units.js";

/** Read the options of a form's fields; what is empty or no number is left to the model. */
export function optionsFrom(fields) {
  const options = {};
  for (const [name, field] of Object.entries(fields)) {
    const value = field.value.trim() === "" ? NaN : Number(field.value);
    if (Number.isFinite(value)) options[name] = value;
  }
  return options;
}

/**
 * Ask for an answer.
 * `show` is called with the answer so far: { text, thinking, stats, state }; state is waiting, writing, done, stopped.
 * A stream that ends without its last line is a broken one, and an error.
 */
export async function answer({ model, messages, options, signal, show }) {
  const begun = performance.now();
  const so = { text: "", thinking: "", stats: null, state: "waiting" };
  let first = null;
  let pieces = 0;
  show(so);
  try {
    for await (const line of lines("/api/chat", { body: { model, messages, options, stream: true }, signal })) {
      const { content = "", thinking = "" } = line.message ?? {};
      if (content || thinking) {
        first ??= performance.now();
        pieces += 1;
        so.text += content;
        so.thinking += thinking;
        so.state = "writing";
      }
      if (line.done) {
        so.stats = statsOf(line, first === null ? null : (first - begun) / 1000);
        so.state = "done";
      }
      show(so);
      if (line.done) return so;
    }
    throw Object.assign(new Error("The answer broke off. The connection to the gateway was lost."), { kind: "lost" });
  } catch (error) {
    if (error.kind !== "stopped") throw Object.assign(error, { so });
    so.state = "stopped";
    const seconds = first === null ? 0 : (performance.now() - first) / 1000;
    so.stats = { tokens: pieces, speed: seconds > 0.05 ? pieces / seconds : null, first: first && (first - begun) / 1000 };
    show(so);
    return so;
  }
}

function statsOf(line, first) {
  const seconds = (line.eval_duration ?? 0) / 1e9;
  return {
    tokens: line.eval_count ?? 0, speed: seconds > 0 ? line.eval_count / seconds : null, first,
    load: (line.load_duration ?? 0) / 1e9, cut: line.done_reason === "length",
  };
}

/** Say an answer's figures in words. */
export function statsWords(stats) {
  if (!stats) return "";
  const words = [`${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`];
  if (stats.speed) words.push(`${digits(stats.speed)} tokens/s`);
  if (stats.first) words.push(`first token after ${digits(stats.first)} s`);
  if (stats.load > 0.05) words.push(`of it ${digits(stats.load)} s to load the model`);
  if (stats.cut) words.push("cut at the limit of tokens");
  return words.join(" · ");
}

/** Call a function at most once a frame, with the last arguments. */
export function perFrame(draw) {
  let latest = null;
  let asked = false;
  const run = () => { asked = false; draw(...latest); };
  return (...values) => {
    latest = values;
    if (asked) return;
    asked = true;
    // A hidden page has no frames, and its answer must not pile up.
    if (document.hidden) setTimeout(run, 200);
    else requestAnimationFrame(run);
  };
}
