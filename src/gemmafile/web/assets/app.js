// The page begins here: what it asks first, which parts there are, keys.

import { showAbout, showExactPrompt, showKeys } from "./about.js";
import { getJson, report, ServerError } from "./api.js";
import { changeSettings, openConversation, page, show, stop, watchScroll } from "./chat.js";
import { startComposer, write } from "./composer.js";
import { announce, byId, copyText, el, openMenu, toast } from "./dom.js";
import { dataMenu } from "./exports.js";
import { isWriting, startNotebook, stopWriting } from "./notebook.js";
import { buildSettings } from "./settings.js";
import { choose, listConversations, showSide, startSidebar, syncSide } from "./sidebar.js";
import * as store from "./store.js";

const STARTERS = ["Why is the sky blue?", "Write a function that finds prime numbers", "Explain matrices, with formulas"];
const isNarrow = () => matchMedia("(max-width: 760px)").matches;

async function start() {
  prepareFrame();
  page.ready = untilReady();
  page.onTrouble = () => { page.ready = untilReady(); };
  page.info = await untilAnswered();
  byId("model-name").textContent = page.info.model;
  byId("hello").textContent = page.info.model;
  byId("notice").textContent = page.info.notice;
  buildSettings(page.info, (settings) => void changeSettings(settings), showExactPrompt);
  page.onChange = () => void listConversations();
  startComposer();
  startSidebar();
  startNotebook();
  watchScroll();
  await openConversation(await store.word("open"));
  followHash();
  if (!(await store.isKept())) toast("This browser keeps nothing for this page: conversations end with it");
  else void navigator.storage?.persist?.().catch(() => {});
  document.documentElement.dataset.started = "yes";
}

/** /page/info needs no engine, but the server may only just be starting. */
async function untilAnswered() {
  for (let wait = 200; ; wait = Math.min(3000, wait * 1.5)) {
    try {
      return await getJson("page/info");
    } catch (error) {
      if (/** @type {ServerError} */ (error).status === 401) throw error;
      showLoading(/** @type {ServerError} */ (error).message, undefined, true);
      await pause(wait);
    }
  }
}

/** Until the engine answers; the banner shows how far it is. */
async function untilReady() {
  for (let wait = 150; ; wait = Math.min(1500, wait * 1.3)) {
    try {
      const { state, progress, restarts, line } = await getJson("page/state");
      if (state === "ready") {
        byId("loading").hidden = true;
        if (page.info) Object.assign(page.info, await getJson("page/info").catch(() => ({})));
        return;
      }
      const words = restarts || state === "dead" ? "The engine stopped and is being started again" : "The model is being loaded";
      showLoading(line || words, progress);
    } catch (error) {
      const { message, status } = /** @type {ServerError} */ (error);
      showLoading(status === 401 ? "This server wants a key: load the page again to give it" : message, undefined, true);
      if (status === 401) return new Promise(() => {}); // it is not asked for without end
    }
    await pause(wait);
  }
}

/** @param {number} ms */
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** @param {string} text @param {number} [progress] @param {boolean} [isBad] */
function showLoading(text, progress, isBad = false) {
  byId("loading").hidden = false;
  byId("loading").classList.toggle("bad", isBad);
  if (byId("loading-text").textContent !== text) byId("loading-text").textContent = text;
  const bar = byId("loading-bar");
  if (progress === undefined) bar.removeAttribute("value");
  else bar.value = progress;
}

// --- the frame ---------------------------------------------------------------------------------------------------------

function prepareFrame() {
  let isOpen = !isNarrow();
  try { isOpen &&= localStorage.getItem("gemmafile-side") !== "closed"; } catch { /* open, then */ }
  byId("app").classList.toggle("no-side", !isOpen);
  syncSide();
  byId("side-close").onclick = () => showSide(false);
  byId("side-open").onclick = () => showSide(byId("app").classList.contains("no-side"));
  byId("new-chat").onclick = () => void choose(null);
  byId("settings-open").onclick = () => showSettingsPanel(byId("settings").hidden);
  byId("settings-close").onclick = () => showSettingsPanel(false);
  byId("open-about").onclick = byId("model-name").onclick = () => { if (page.info) showAbout(); };
  byId("open-keys").onclick = showKeys;
  byId("open-notebook").onclick = () => { location.hash = location.hash === "#notebook" ? "" : "#notebook"; if (isNarrow()) showSide(false); };
  byId("open-data").onclick = () => openMenu(byId("open-data"), dataMenu(page, () => void listConversations()));
  byId("theme").onclick = nextTheme;
  showTheme();
  byId("starters").replaceChildren(...STARTERS.map((text) => el("button", { type: "button", onclick: () => write(text) }, text)));
  addEventListener("hashchange", followHash);
  addEventListener("keydown", onKey);
  addEventListener("unhandledrejection", (event) => { report(event.reason); event.preventDefault(); });
  byId("messages").addEventListener("click", (/** @type {any} */ event) => {
    const button = event.target.closest(".copy");
    if (button) void copyText(button.closest(".code").querySelector("code").textContent, button);
  });
  byId("scrim").onclick = () => showSide(false);
  matchMedia("(max-width: 760px)").addEventListener("change", (event) => {
    byId("app").classList.toggle("no-side", event.matches);
    syncSide();
  });
}

/** @param {boolean} isOpen */
function showSettingsPanel(isOpen) {
  byId("settings").hidden = !isOpen;
  byId("settings-open").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) byId("settings-close").focus();
  else byId("settings-open").focus();
}

function followHash() {
  const isNotebook = location.hash === "#notebook";
  byId("notebook-view").hidden = !isNotebook;
  byId("chat-view").hidden = isNotebook;
  byId("open-notebook").setAttribute("aria-pressed", String(isNotebook));
  if (isNotebook) {
    byId("title").textContent = "Notebook";
    byId("notebook-text").focus();
  } else if (page.conversation) void show();
}

const THEMES = ["system", "light", "dark"];
const themeNow = () => document.documentElement.dataset.theme ?? "system";

function nextTheme() {
  const name = THEMES[(THEMES.indexOf(themeNow()) + 1) % THEMES.length];
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  try { localStorage.setItem("gemmafile-theme", name); } catch { /* until the page is closed, then */ }
  showTheme();
  announce(`Theme: ${themeNow()}`);
}

function showTheme() {
  byId("theme-name").textContent = `Theme: ${themeNow()}`;
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const isTyping = /^(TEXTAREA|INPUT|SELECT)$/.test(target.tagName ?? "");
  const withCtrl = event.ctrlKey || event.metaKey;
  if (byId("dialog").open) return;
  if (event.key === "Escape") {
    if (document.querySelector(":popover-open")) return;
    if (!byId("settings").hidden && byId("settings").contains(target)) showSettingsPanel(false);
    else if (isNarrow() && !byId("app").classList.contains("no-side")) showSide(false);
    else if (isWriting()) stopWriting();
    else stop();
  } else if (withCtrl && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    void choose(null);
  } else if (withCtrl && event.key.toLowerCase() === "k") {
    event.preventDefault();
    showSide(true);
  } else if (withCtrl && event.key === ",") {
    event.preventDefault();
    showSettingsPanel(byId("settings").hidden);
  } else if (event.key === "/" && !isTyping) {
    event.preventDefault();
    byId("message-box").focus();
  }
}

start().catch(report);
