// Messages on the screen. What a button does is decided in chat.js.

import { copyText, el, icon, iconButton, withCommas } from "./dom.js";
import { renderAll, showText } from "./live.js";
import { tokenView } from "./tokens.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {{edit: (m: Message, text: string) => void, regenerate: (m: Message) => void, remove: (m: Message) => void,
 *   resume: (m: Message) => void, fork: (m: Message, at: number, choice: any) => void, turn: (m: Message, step: number) => void,
 *   report: (m: Message) => void, live: (m: Message) => any,
 *   isShown: (c: import("./tree.js").Conversation) => boolean}} Actions */

/** @type {Map<string, {element: any, state: string}>} */
const shown = new Map();
/** @type {Set<string>} messages whose tokens are shown */
const withTokens = new Set();

/** Show these messages. Elements of messages that did not change stay.
 * @param {any} box @param {import("./tree.js").Conversation} conversation @param {Actions} actions @param {string} botName */
export async function showMessages(box, conversation, actions, botName) {
  const path = conversation.path();
  await renderAll(path.filter((m) => m.role === "assistant" && !actions.live(m)).map((m) => m.content));
  if (!actions.isShown(conversation) || conversation.path().map((m) => m.id).join() !== path.map((m) => m.id).join()) return;
  /** @type {any[]} */
  const elements = [];
  for (const message of path) {
    const siblings = conversation.siblings(message);
    const live = actions.live(message);
    const at = siblings.indexOf(message);
    const state = JSON.stringify([
      message.content, message.error, message.reason, message.attachments?.length, at, siblings.length, !!live,
      withTokens.has(message.id), message.tokens?.length, message === path.at(-1), botName,
    ]);
    let known = shown.get(message.id);
    if (!known || known.state !== state || live) {
      known = { state, element: makeMessage(message, live, at, siblings.length, message === path.at(-1), actions, botName) };
      shown.set(message.id, known);
    }
    elements.push(known.element);
  }
  const old = [...box.children];
  if (old.length !== elements.length || old.some((element, i) => element !== elements[i])) {
    const focused = document.activeElement?.closest?.(".message")?.getAttribute("data-id");
    const label = document.activeElement?.getAttribute("aria-label");
    box.replaceChildren(...elements);
    if (focused && label && !box.contains(document.activeElement)) {
      box.querySelector(`[data-id="${focused}"] [aria-label="${CSS.escape(label)}"]`)?.focus();
    }
  }
}

/** @param {Message} message @param {any} live @param {number} at @param {number} count @param {boolean} isLast
 * @param {Actions} actions @param {string} botName */
function makeMessage(message, live, at, count, isLast, actions, botName) {
  const isUser = message.role === "user";
  const name = isUser ? "You" : botName;
  const body = el("div", { class: isUser ? "body" : "body content", dir: "auto" });
  const article = el("article", { class: `message ${message.role}`, "data-id": message.id, "aria-label": name }, el("h2", {}, name));
  if (message.attachments?.length) {
    article.append(el("ul", { class: "chips" }, ...message.attachments.map((file) =>
      el("li", { class: "chip done", title: file.text.slice(0, 1000) }, icon("clip"), `${file.name}, ${withCommas(file.n_tokens)} tokens`))));
  }
  article.append(body);
  if (isUser) body.append(message.content);
  else if (live) body.append(live.element);
  else if (withTokens.has(message.id) && message.tokens?.length) {
    body.classList.remove("content");
    body.append(tokenView(message.tokens, (place, choice) => actions.fork(message, place, choice), message.n_kept));
  } else void showText(body, message.content);
  if (message.error) {
    article.append(el("div", { class: "problem", role: "alert" }, message.error,
      el("button", { type: "button", class: "button", onclick: () => actions.regenerate(message) }, "Try again")));
  } else if (!isUser && !live && message.reason === "length") {
    article.append(el("p", { class: "remark" }, "The answer was cut: it reached its limit, or the context is full."));
  }
  if (!live) article.append(makeActions(message, article, body, at, count, isLast, actions));
  return article;
}

/** @param {Message} message @param {any} article @param {any} body @param {number} at @param {number} count
 * @param {boolean} isLast @param {Actions} actions */
function makeActions(message, article, body, at, count, isLast, actions) {
  const isUser = message.role === "user";
  const row = el("div", { class: "actions" });
  if (count > 1) {
    row.append(el("span", { class: "branch", role: "group", "aria-label": "Versions" },
      iconButton("left", "Previous version", () => actions.turn(message, -1), { disabled: at === 0 }),
      el("span", {}, `${at + 1}/${count}`),
      iconButton("right", "Next version", () => actions.turn(message, 1), { disabled: at === count - 1 })));
  }
  row.append(iconButton("copy", "Copy", (event) => copyText(message.content, event.currentTarget)));
  row.append(iconButton("edit", "Edit", () => editMessage(message, article, body, actions)));
  if (!isUser) {
    row.append(iconButton("redo", "Answer again", () => actions.regenerate(message)));
    const canResume = isLast && (message.reason !== "stop" || message.error);
    if (canResume && message.content) row.append(iconButton("play", "Go on", () => actions.resume(message)));
    if (message.tokens?.length) {
      row.append(iconButton("tokens", "Tokens", () => {
        if (!withTokens.delete(message.id)) withTokens.add(message.id);
        const fresh = makeMessage(message, null, at, count, isLast, actions, article.getAttribute("aria-label"));
        article.replaceWith(fresh);
        shown.delete(message.id);
        fresh.querySelector('[aria-label="Tokens"]')?.focus();
      }, { "aria-pressed": String(withTokens.has(message.id)) }));
    }
    row.append(iconButton("flag", "Report this answer", () => actions.report(message)));
  }
  row.append(iconButton("trash", "Delete", () => actions.remove(message)));
  const stats = describeTimings(message);
  if (stats) row.append(el("span", { class: "stats", title: stats.more }, stats.text));
  return row;
}

/** @param {Message} message */
function describeTimings(message) {
  const { timings, first_ms: first } = message;
  if (!timings?.predicted_n) return null;
  const parts = [`${withCommas(timings.predicted_n)} tokens`];
  if (timings.predicted_per_second) parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  if (first !== undefined) parts.push(`first after ${(first / 1000).toFixed(2)} s`);
  const more = `Prompt: ${withCommas(timings.prompt_n)} tokens read in ${(timings.prompt_ms / 1000).toFixed(2)} s, ` +
    `${withCommas(timings.cache_n ?? 0)} were known`;
  return { text: parts.join(" · "), more };
}

/** @param {Message} message @param {any} article @param {any} body @param {Actions} actions */
function editMessage(message, article, body, actions) {
  if (article.querySelector(".edit-box")) return;
  const isUser = message.role === "user";
  const text = el("textarea", { value: message.content, dir: "auto", rows: Math.min(16, message.content.split("\n").length + 2), "aria-label": "The message" });
  const close = () => {
    box.remove();
    body.hidden = false;
    article.querySelector('[aria-label="Edit"]')?.focus();
  };
  const save = () => { if (text.value.trim()) { close(); actions.edit(message, text.value); } };
  const box = el("div", { class: "edit-box", onkeydown: (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  } }, text, el("div", { class: "buttons" },
    el("button", { type: "button", class: "button", onclick: close }, "Cancel"),
    el("button", { type: "button", class: "button strong", onclick: save }, isUser ? "Send as a new branch" : "Save as a new branch")));
  body.hidden = true;
  body.after(box);
  text.focus();
}

/** What was shown is of another conversation. */
export const forgetMessages = () => shown.clear();
