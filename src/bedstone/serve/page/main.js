// The page: asks for the models, and shows a tab for each thing that one of them does.

import { Refused, get, hasKey, onLocked, setKey } from "./api.js";
import { chatPanel, chats } from "./chat.js";
import { comparePanel, compares } from "./compare.js";
import { el } from "./dom.js";
import { TOOLS, toolPanel } from "./tools.js";

const tabs = document.getElementById("tabs");
const panels = document.getElementById("panels");
const state = document.getElementById("state");
const entrance = document.getElementById("entrance");
const entranceKey = document.getElementById("entrance-key");
const entranceFault = document.getElementById("entrance-fault");
const change = document.getElementById("key");

/** Tabs that these models have, in order: { id, title, make }. */
function offered(cards) {
  const found = [];
  const talking = cards.filter(chats);
  const add = (id, title, make) => found.push({ id, title, make });
  if (talking.length) add("chat", "Chat", () => chatPanel(talking));
  for (const tool of TOOLS) {
    const able = cards.filter((card) => tool.actions.some((action) => action.fits(card)));
    if (able.length) add(tool.id, tool.title, () => toolPanel(tool, able));
  }
  const writing = cards.filter(compares);
  if (writing.length > 1) add("compare", "Compare", () => comparePanel(writing));
  return found;
}

/** A model's card with what an older server leaves out. */
function whole(card) {
  return { tasks: [], prompted_tasks: [], capabilities: [], indexes: [], ...card };
}

function build(list) {
  tabs.replaceChildren();
  panels.replaceChildren();
  for (const each of list) {
    const tab = el("button", {
      type: "button", role: "tab", id: `tab-${each.id}`, "aria-controls": `panel-${each.id}`,
      "aria-selected": "false", tabindex: -1, onclick: () => choose(each.id),
    }, each.title);
    tabs.append(tab);
    panels.append(el("section", {
      role: "tabpanel", id: `panel-${each.id}`, "aria-labelledby": `tab-${each.id}`, hidden: true,
    }));
  }

  function choose(id, focus = false) {
    for (const each of list) {
      const tab = document.getElementById(`tab-${each.id}`);
      const panel = document.getElementById(`panel-${each.id}`);
      const chosen = each.id === id;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      panel.hidden = !chosen;
      if (chosen && !panel.firstChild) panel.append(each.make());
      if (chosen && focus) tab.focus();
    }
    history.replaceState(null, "", `#${id}`);
  }

  tabs.onkeydown = (event) => {
    const at = list.findIndex((each) => document.activeElement.id === `tab-${each.id}`);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: list.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    choose(list[(to + list.length) % list.length].id, true);
  };
  const wanted = location.hash.slice(1);
  choose((list.find((each) => each.id === wanted) || list[0]).id);
}

async function open() {
  try {
    const list = offered((await get("models")).data.map(whole));
    change.hidden = !hasKey();
    state.textContent = "The models of this server do nothing that this page shows.";
    state.hidden = Boolean(list.length);
    if (list.length) build(list);
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    state.hidden = false;
    state.textContent = error.status === 401 ? "This server needs a key." : error.message;
    return false;
  }
}

function ask(wrong) {
  entranceFault.textContent = wrong ? "The server doesn't know this key." : "";
  change.textContent = hasKey() && !wrong ? "Change key" : "Enter key";
  change.hidden = false;
  entranceKey.value = "";
  if (!entrance.open) entrance.showModal();
  entranceKey.focus();
}

onLocked(ask);
change.addEventListener("click", () => ask(false));
entrance.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey(entranceKey.value.trim());
  if (await open()) {
    change.textContent = "Change key";
    entrance.close();
  }
});
open();
