// Talks to the gateway: keys, errors in words, lines of JSON as they come.

import { byId, el } from "./dom.js";

const KEY = "kvant.key";
const PATIENCE_MS = 20000;

/** What went wrong, in words a person can act on. */
export class Problem extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

/** A path of the gateway as this page reaches it: it may be shown below a prefix, and lies at PREFIX/ui/ itself. */
const at = (path) => new URL(`..${path}`, document.baseURI);

const LOST = "The gateway cannot be reached. Is it still running?";
let asking = null;

/** Ask the gateway. A missing key is asked for and the request made again; 2xx answers are returned. */
export async function ask(path, { body, signal, patient = false } = {}) {
  for (;;) {
    const key = stored();
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    const signals = [signal, patient ? null : AbortSignal.timeout(PATIENCE_MS)].filter(Boolean);
    let response;
    try {
      response = await fetch(at(path), {
        method: body === undefined ? "GET" : "POST", headers, signal: signals.length ? AbortSignal.any(signals) : null,
        body: body === undefined ? null : JSON.stringify(body), credentials: "omit", cache: "no-store",
      });
    } catch (error) {
      throw broken(error);
    }
    reachable(true);
    if (response.ok) return response;
    if (response.status !== 401) throw await refused(response);
    if (stored() === key && !(await askForKey(key !== null))) {
      throw new Problem("This gateway wants an API key.", "key");
    }
  }
}

/** Ask for one JSON value. */
export async function json(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw broken(error);
  }
}

/** Ask for lines of JSON; each is given as it comes. A line with `error` ends it. */
export async function* lines(path, options) {
  const response = await ask(path, { ...options, patient: true });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const parts = (rest + (done ? "\n" : value)).split("\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.trim()) continue;
        const line = JSON.parse(part);
        if (line.error) throw new Problem(wordsOf(line), "server");
        yield line;
      }
      if (done) return;
    }
  } catch (error) {
    throw broken(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function broken(error) {
  if (error instanceof Problem) return error;
  if (error.name === "AbortError") return new Problem("Stopped.", "stopped");
  if (error.name === "TimeoutError") return new Problem("The gateway did not answer in time. Try again.", "slow");
  if (error instanceof SyntaxError) return new Problem("The gateway's answer could not be read.", "server");
  reachable(false);
  return new Problem(LOST, "lost");
}

async function refused(response) {
  let words = "";
  try {
    words = wordsOf(await response.json());
  } catch {
    // No JSON: the status has to do.
  }
  const after = response.headers.get("retry-after");
  if (response.status === 503 || response.status === 429) {
    words = `${words || "The gateway is busy."}${after && !/again in/.test(words) ? ` Try again in ${after} s.` : ""}`;
  }
  const problem = new Problem(words || `The gateway refused this (status ${response.status}).`, "server");
  problem.status = response.status;
  return problem;
}

const wordsOf = (body) => String(body?.error?.message ?? body?.error ?? "").slice(0, 2000);

// Keys

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Forget the key. */
export function forgetKey() {
  sessionStorage.removeItem(KEY);
  showKey();
}

function showKey() {
  byId("forget-key").hidden = stored() === null;
}

/** Show the dialog; several requests that lack a key wait for the same answer. Resolves to whether one was given. */
function askForKey(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key-input");
    byId("key-words").textContent = wasWrong
      ? "This key is not valid here, or has expired."
      : "This gateway answers to those who have a key. Make one on its machine with: kvant key add NAME";
    input.value = "";
    dialog.onsubmit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close("given");
    };
    dialog.onclose = () => {
      asking = null;
      input.value = "";
      showKey();
      resolve(dialog.returnValue === "given");
    };
    dialog.returnValue = "";
    dialog.showModal();
    input.focus();
  });
  return asking;
}

// The connection

let timer = null;

function reachable(is) {
  byId("connection").hidden = is;
  if (is && timer !== null) {
    clearTimeout(timer);
    timer = null;
    document.dispatchEvent(new Event("kvant:back"));
  } else if (!is && timer === null) {
    timer = setTimeout(look, 2000);
  }
}

async function look() {
  try {
    await fetch(at("/health"), { cache: "no-store", signal: AbortSignal.timeout(5000) });
    reachable(true);
  } catch {
    timer = setTimeout(look, 3000);
  }
}

/** Set up the buttons of the connection banner and the key. */
export function watchConnection() {
  byId("retry").onclick = () => { clearTimeout(timer); timer = setTimeout(look, 0); };
  byId("forget-key").onclick = () => { forgetKey(); document.dispatchEvent(new Event("kvant:back")); };
  byId("key-cancel").onclick = () => byId("key-dialog").close("");
  showKey();
}

/** A box that tells a problem, with a button to try again. */
export function problemBox(problem, again) {
  return el("div", { class: "problem", role: "alert" }, el("p", {}, problem.message),
    again ? el("button", { type: "button", onclick: again }, "Try again") : null);
}
