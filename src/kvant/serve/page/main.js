// Tabs, theme, keys that work everywhere, and the first question to the gateway.

import { problemBox, watchConnection } from "./api.js";
import { chatWith, setUpChat, stopChat } from "./chat.js";
import { setUpCompare, showCompare, stopCompare } from "./compare.js";
import { showCards } from "./cards.js";
import { byId } from "./dom.js";
import { watchLoaded } from "./loaded.js";
import { refresh } from "./models.js";

const TABS = ["chat", "compare", "cards", "loaded"];
const THEMES = ["auto", "light", "dark"];

/** Show a part without asking the gateway for anything. */
function select(name, focus) {
  const chosen = TABS.includes(name) ? name : "chat";
  for (const tab of TABS) {
    const node = byId(`tab-${tab}`);
    node.setAttribute("aria-selected", String(tab === chosen));
    node.tabIndex = tab === chosen ? 0 : -1;
    byId(`panel-${tab}`).hidden = tab !== chosen;
    if (tab === chosen && focus) node.focus();
  }
  if (location.hash !== `#${chosen}`) history.replaceState(null, "", `#${chosen}`);
  return chosen;
}

function show(name, focus = false) {
  const chosen = select(name, focus);
  if (chosen === "cards") showCards(startChat);
  if (chosen === "compare") showCompare();
  watchLoaded(chosen === "loaded");
}

function startChat(name) {
  show("chat");
  chatWith(name);
}

function setUpTabs() {
  TABS.forEach((tab, i) => {
    const node = byId(`tab-${tab}`);
    node.onclick = () => show(tab);
    node.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const target = event.key === "Home" ? 0 : event.key === "End" ? TABS.length - 1 : step && (i + step + TABS.length) % TABS.length;
      if (target === undefined) return;
      event.preventDefault();
      show(TABS[target], true);
    };
  });
  window.addEventListener("hashchange", () => show(location.hash.slice(1)));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || byId("key-dialog").open) return;
    if (stopChat() || stopCompare()) event.preventDefault();
  });
}

function setUpTheme() {
  const button = byId("theme");
  const current = () => document.documentElement.dataset.theme ?? "auto";
  const name = () => {
    button.textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[current()];
  };
  button.onclick = () => {
    const next = THEMES[(THEMES.indexOf(current()) + 1) % THEMES.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("kvant.theme", next);
    } catch {
      // Not kept, then.
    }
    name();
  };
  name();
}

async function load() {
  const room = byId("start-problem");
  try {
    await refresh();
    room.replaceChildren();
    show(location.hash.slice(1));
  } catch (problem) {
    room.replaceChildren(problemBox(problem, load));
  }
}

// On a narrow screen the settings would push the conversation away.
for (const id of ["chat-settings", "compare-settings"]) byId(id).open = window.matchMedia("(min-width: 60rem)").matches && id === "chat-settings";
setUpTabs();
setUpTheme();
setUpChat();
setUpCompare();
watchConnection();
document.addEventListener("kvant:back", load);
select(location.hash.slice(1), false);
load();
