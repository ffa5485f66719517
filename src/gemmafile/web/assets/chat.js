// The conversation that is open: asking, answering, branches. What it looks like is in view.js.

import { chatStream, completionStream, getJson, report, textOf } from "./api.js";
import { announce, byId, debounce, el, toast, untilAborted, withCommas } from "./dom.js";
import { reportAnswer } from "./exports.js";
import { LiveText } from "./live.js";
import { completeSettings, requestFields, showSettings, showWarnings } from "./settings.js";
import * as store from "./store.js";
import { Conversation, sentText } from "./tree.js";
import { forgetMessages, showMessages } from "./view.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {import("./api.js").Token} Token */

export const page = {
  /** @type {any} what /page/info told */
  info: null,
  /** @type {Conversation} */
  conversation: /** @type {any} */ (null),
  /** @type {Promise<void>} the engine is ready */
  ready: Promise.resolve(),
  onChange: () => {},
  /** The server did not answer as it should: is it still there? */
  onTrouble: () => {},
  /** What is in the box but not sent. */
  draft: () => "",
};

/** Answers being written, by conversation.
 * @type {Map<string, {abort: AbortController, message: Message, live: LiveText, conversation: Conversation}>} */
const running = new Map();
/** Conversations whose next answer is about to begin. @type {Set<string>} */
const beginning = new Set();

const settingsOf = (conversation = page.conversation) => completeSettings(conversation.head.settings);
const botName = () => page.info?.model ?? "Model";

// --- which conversation ------------------------------------------------------------------------------------------------

let nOpened = 0;
/** @param {string | null} id null: a new one */
export async function openConversation(id) {
  const turn = ++nOpened;
  // One whose answer is being written holds more than is stored.
  const found = id ? running.get(id)?.conversation ?? (await Conversation.load(id)) : null;
  const conversation = found ?? Conversation.make(completeSettings(await store.word("new", {})));
  if (turn !== nOpened) return; // another was chosen meanwhile
  if (id && !found) toast("That conversation is gone");
  page.conversation = conversation;
  void store.setWord("open", found ? id : null);
  forgetMessages();
  showSettings(settingsOf());
  await show();
  toEnd(true);
  byId("message-box").focus({ preventScroll: true });
}

/** @param {any} settings */
export async function changeSettings(settings) {
  page.conversation.head.settings = settings;
  if (page.conversation.isStored) await store.put("conversations", page.conversation.head);
  refreshPrompt();
}

/** Show the conversation as it is now. */
export async function show() {
  const { conversation } = page;
  const isRunning = running.has(conversation.id);
  const path = conversation.path();
  byId("title").textContent = conversation.head.title;
  document.title = path.length ? `${conversation.head.title} · ${botName()}` : botName();
  byId("welcome").hidden = path.length > 0;
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  byId("messages").setAttribute("aria-busy", String(isRunning));
  await showMessages(byId("messages"), conversation, actions, botName());
  page.onChange();
  refreshPrompt();
}

/** @param {string} id of a conversation @returns {boolean} is an answer being written there? */
export const isRunning = (id) => running.has(id);

/** The head of a conversation that is in memory: what is stored would be overwritten by it. @param {string} id */
export const headOf = (id) => (page.conversation.id === id ? page.conversation : running.get(id)?.conversation)?.head;

// --- scrolling ---------------------------------------------------------------------------------------------------------

let sticks = true;
/** @param {boolean} [anyway] */
function toEnd(anyway = false) {
  const box = byId("scroll");
  if (sticks || anyway) box.scrollTop = box.scrollHeight;
}

export function watchScroll() {
  const box = byId("scroll");
  box.addEventListener("scroll", () => {
    sticks = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    byId("to-end").hidden = sticks;
  }, { passive: true });
  byId("to-end").addEventListener("click", () => { sticks = true; toEnd(true); });
}

// --- the prompt: how long it is, and whether it leaves the trained format ----------------------------------------------

/** @param {Conversation} conversation @param {Message[]} path of it @param {string} [draft] */
function messagesFor(conversation, path, draft = "") {
  const { system } = settingsOf(conversation);
  const messages = path.map((message) => ({ role: message.role, content: sentText(message).toWellFormed() }));
  if (draft) messages.push({ role: "user", content: draft.toWellFormed() });
  // An empty one overrules the system prompt that the server was started with.
  if (system.trim() || page.info.system) messages.unshift(/** @type {any} */ ({ role: "system", content: system.toWellFormed() }));
  return messages;
}

/** @param {Conversation} conversation @param {any[]} messages @param {any} [more] @returns {Promise<any>} */
function buildPrompt(conversation, messages, more = {}) {
  const { mode, prompt_template, history_template, user, bot } = settingsOf(conversation);
  return getJson("page/prompt", { mode, messages, prompt_template, history_template, user, bot, ...more });
}

export const refreshPrompt = debounce(350, async () => {
  const { conversation } = page;
  if (!page.info || running.has(conversation.id)) return;
  const messages = messagesFor(conversation, conversation.path(), page.draft());
  const isEmpty = !messages.some((m) => m.role === "user");
  if (isEmpty) showMeter(0);
  if (settingsOf().mode === "model") {
    showWarnings([]);
    if (isEmpty) return;
  } else if (messages.at(-1)?.role !== "user") messages.push({ role: "user", content: "…" });
  try {
    const found = await buildPrompt(conversation, messages);
    if (conversation !== page.conversation) return;
    if (!isEmpty) showMeter(found.tokens.length);
    showWarnings(found.warnings);
  } catch (error) {
    showWarnings([/** @type {Error} */ (error).message]);
  }
});

/** @param {number} n */
function showMeter(n) {
  const size = page.info.context;
  byId("context-bar").value = Math.min(1, n / size);
  byId("context").classList.toggle("empty", !n);
  byId("context-text").textContent = n ? `${withCommas(n)} / ${withCommas(size)}` : "";
  byId("context").classList.toggle("full", n >= size);
  byId("context").title = n >= size ? "This does not fit into the context" : "Tokens of the context in use";
}

export async function exactPrompt() {
  const { conversation } = page;
  const messages = messagesFor(conversation, conversation.path(), page.draft());
  if (messages.at(-1)?.role !== "user") messages.push({ role: "user", content: "…" });
  return buildPrompt(conversation, messages, { pieces: true });
}

// --- answering ---------------------------------------------------------------------------------------------------------

/** @param {string} text @param {import("./store.js").Attachment[]} attachments */
export async function send(text, attachments) {
  const { conversation } = page;
  if (running.has(conversation.id)) return;
  const parent = conversation.head.leaf;
  await conversation.add({ parent, role: "user", content: text, ...(attachments.length ? { attachments } : {}) });
  void store.setWord("open", conversation.id);
  sticks = true;
  await answer(conversation, conversation.head.leaf);
}

export function stop() {
  running.get(page.conversation.id)?.abort.abort();
}

/** Write an answer after a message, or go on with one whose tokens are given.
 * @param {Conversation} conversation @param {string | null} parent
 * @param {{tokens: Token[], text: string, ids: number[], into?: Message}} [start] */
async function answer(conversation, parent, start) {
  if (running.has(conversation.id) || beginning.has(conversation.id)) return;
  const parts = { parent, role: /** @type {const} */ ("assistant"), content: start?.text ?? "", tokens: start?.tokens ?? [], n_kept: start?.tokens.length };
  beginning.add(conversation.id);
  const message = start?.into ?? (await conversation.add(parts));
  beginning.delete(conversation.id);
  Object.assign(message, { error: undefined, reason: undefined, timings: undefined });
  const live = new LiveText(message.content);
  live.onGrow = () => toEnd();
  const abort = new AbortController();
  running.set(conversation.id, { abort, message, live, conversation });
  if (message.content) void live.step();
  const waiting = el("div", { class: "prefill" }, el("span", {}, "Waiting for the model"));
  live.element.append(waiting);
  live.element.classList.add("writing");
  await show();
  toEnd();
  const begun = performance.now();
  let saved = begun;
  try {
    await Promise.race([page.ready, untilAborted(abort.signal)]);
    for await (const piece of await openStream(conversation, message, parent, start?.ids, abort.signal)) {
      if (piece.progress && !piece.text) showPrefill(waiting, piece.progress);
      if (piece.tokens) (message.tokens ??= []).push(...piece.tokens);
      if (piece.text) {
        message.first_ms ??= performance.now() - begun;
        waiting.remove();
        message.content += piece.text;
        live.push(piece.text);
        if (performance.now() - saved > 3000) {
          saved = performance.now();
          void conversation.save(message);
        }
      }
      if (piece.end) Object.assign(message, { reason: piece.end.reason, timings: piece.end.timings });
    }
    message.reason ??= "stop";
  } catch (error) {
    if (abort.signal.aborted) message.reason = "stopped";
    else {
      Object.assign(message, { reason: "error", error: /** @type {Error} */ (error).message });
      page.onTrouble();
    }
  }
  waiting.remove();
  await finish(conversation, message, live);
}

let nFinished = 0;
/** @param {Conversation} conversation @param {Message} message @param {LiveText} live */
async function finish(conversation, message, live) {
  await live.finish();
  live.element.classList.remove("writing");
  running.delete(conversation.id);
  if (message.tokens && !message.tokens.length) delete message.tokens;
  if (message.n_kept === 0) delete message.n_kept;
  await conversation.save(message);
  if (page.conversation === conversation) await show();
  else page.onChange();
  toEnd();
  document.documentElement.dataset.answers = String(++nFinished);
  announce(message.error ? `Error: ${message.error}` : message.reason === "stopped" ? "Stopped" : "The answer is finished");
}

/** @param {Conversation} conversation @param {Message} message @param {string | null} parent @param {number[] | undefined} ids
 * of the beginning of the answer @param {AbortSignal} signal */
async function openStream(conversation, message, parent, ids, signal) {
  const settings = settingsOf(conversation);
  const fields = requestFields(settings);
  const messages = messagesFor(conversation, conversation.path(parent));
  message.request = { messages, mode: settings.mode, ...fields };
  if (settings.mode === "model" && !ids) return chatStream({ messages, ...fields }, signal);
  const built = await buildPrompt(conversation, messages);
  if (settings.mode !== "model") {
    const { prompt_template, history_template, user, bot } = settings;
    Object.assign(message.request, { prompt_template, history_template, user, bot });
  }
  // What is gone on with is in the prompt, but the answer's own: a grammar meets it, a character may begin in it.
  if (ids) fields.n_begun = ids.length;
  return completionStream({ prompt: [...built.tokens, ...(ids ?? [])], stop: built.stop, ...fields }, signal);
}

/** @param {any} box @param {{done: number, total: number}} progress */
function showPrefill(box, { done, total }) {
  if (total < 64) return;
  const bar = box.querySelector("progress") ?? el("progress", { max: 1, "aria-label": "Reading the prompt" });
  bar.value = done / Math.max(1, total);
  box.replaceChildren(el("span", {}, `Reading the prompt, ${withCommas(done)} of ${withCommas(total)} tokens`), bar);
}

// --- what can be done with a message -----------------------------------------------------------------------------------

const isBusy = () => {
  const busy = running.has(page.conversation.id) || beginning.has(page.conversation.id);
  if (busy) toast("An answer is being written: stop it first");
  return busy;
};

/** @type {import("./view.js").Actions} */
const actions = {
  live: (message) => {
    const found = running.get(message.conversation);
    return found?.message.id === message.id ? found.live : null;
  },

  async edit(message, text) {
    if (isBusy()) return;
    const { conversation } = page;
    const { parent, role, attachments } = message;
    const fresh = await conversation.add({ parent, role, content: text, ...(attachments ? { attachments } : {}), ...(role === "assistant" ? { reason: "edited" } : {}) });
    if (role === "user") await answer(conversation, fresh.id);
    else await show();
  },

  async regenerate(message) {
    if (isBusy()) return;
    const { conversation } = page;
    if (message.error && !message.content) await conversation.cut(message);
    await answer(conversation, message.parent);
  },

  async remove(message) {
    if (isBusy()) return;
    const { conversation } = page;
    const { leaf } = conversation.head;
    const gone = await conversation.cut(message);
    await show();
    announce("Deleted");
    toast(gone.length === 1 ? "Message deleted" : `${gone.length} messages deleted`, "Undo", async () => {
      await conversation.putBack(gone, leaf);
      await show();
    });
  },

  async turn(message, step) {
    if (isBusy()) return;
    const siblings = page.conversation.siblings(message);
    await page.conversation.show(siblings[siblings.indexOf(message) + step] ?? message);
    await show();
  },

  /** Go on with an answer that was stopped or cut, in its own place. */
  async resume(message) {
    if (isBusy()) return;
    try {
      const tokens = message.tokens ?? [];
      const isWhole = textOf(tokens) === message.content;
      const ids = isWhole ? tokens.map((token) => token.id)
        : (await getJson("tokenize", { content: message.content.toWellFormed(), add_special: false, parse_special: false })).tokens;
      if (!isWhole) message.tokens = [];
      await answer(page.conversation, message.parent, { tokens: message.tokens ?? [], text: message.content, ids, into: message });
    } catch (error) {
      report(error);
    }
  },

  /** A new branch: the tokens before `at`, then another one, then whatever follows. */
  async fork(message, at, choice) {
    if (isBusy()) return;
    const kept = [...(message.tokens ?? []).slice(0, at), { ...choice, top: message.tokens?.[at]?.top ?? [] }];
    await answer(page.conversation, message.parent, { tokens: kept, text: textOf(kept), ids: kept.map((token) => token.id) });
  },

  report: (message) => reportAnswer(page, message),

  isShown: (conversation) => page.conversation === conversation,
};
