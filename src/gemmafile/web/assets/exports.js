// Conversations as files, out and in; and the report of an answer.

import { report } from "./api.js";
import { byId, download, el, fileName, openDialog, toast } from "./dom.js";
import * as store from "./store.js";
import { Conversation, sentText } from "./tree.js";

/** @typedef {import("./store.js").Message} Message */

const FORMAT = "gemmafile conversations 1";
const today = () => new Date().toISOString().slice(0, 10);

/** @param {string[]} [ids] all of them if none are named */
export async function exportJson(ids) {
  const heads = (await store.all("conversations")).filter((head) => !ids || ids.includes(head.id));
  const conversations = [];
  for (const head of heads) conversations.push({ ...head, messages: await store.messagesOf(head.id) });
  const name = ids?.length === 1 ? fileName(heads[0]?.title ?? "chat") : `conversations-${today()}`;
  download(`${name}.json`, JSON.stringify({ format: FORMAT, exported: new Date().toISOString(), conversations }, null, 1));
}

/** The branch that is shown, to be read. @param {string} id */
export async function exportMarkdown(id) {
  const conversation = await Conversation.load(id);
  if (!conversation) return;
  const { system } = conversation.head.settings ?? {};
  const parts = [`# ${conversation.head.title}`, ...(system ? [`## System\n\n${system}`] : [])];
  for (const message of conversation.path()) {
    parts.push(`## ${message.role === "user" ? "You" : "Answer"}\n\n${message.role === "user" ? sentText(message) : message.content}`);
  }
  download(`${fileName(conversation.head.title)}.md`, `${parts.join("\n\n")}\n`, "text/markdown");
}

/** Let the reader choose a file, and take the conversations in it. @param {() => void} onDone */
export function importFile(onDone) {
  const input = el("input", { type: "file", accept: ".json,application/json" });
  input.addEventListener("change", async () => {
    try {
      const found = readConversations(JSON.parse(await input.files[0].text()));
      for (const conversation of found) await conversation.write(...conversation.messages.values());
      toast(found.length === 1 ? "One conversation imported" : `${found.length} conversations imported`);
      onDone();
    } catch (error) {
      toast(`This file cannot be imported: ${/** @type {Error} */ (error).message}`);
    }
  });
  input.click();
}

/** Conversations of a file of ours, of llama.cpp's page, or with a list of `messages`. @param {any} value
 * @returns {Conversation[]} */
export function readConversations(value) {
  const items = Array.isArray(value) ? value : value?.conversations ?? [value];
  if (!Array.isArray(items)) throw new Error("there is no list of conversations in it");
  const found = items.filter((item) => item && typeof item === "object").map(readOne).filter((one) => one.messages.size > 0);
  if (!found.length) throw new Error("there are no messages in it");
  return found;
}

/** @param {any} item */
function readOne(item) {
  const head = item.conv ?? item;
  const made = Conversation.make(plainObject(head.settings));
  const id = made.id;
  const raw = Array.isArray(item.messages) ? item.messages : [];
  /** @type {Map<any, string>} */
  const ids = new Map(raw.map((/** @type {any} */ message) => [message?.id ?? message, store.newId()]));
  const isTree = raw.some((/** @type {any} */ message) => typeof message?.parent === "string" && ids.has(message.parent));
  let previous = null;
  let created = 0;
  for (const message of raw) {
    const text = textOf(message?.content);
    if (message?.role === "system" && text) made.head.settings.system = text;
    if (!["user", "assistant"].includes(message?.role) || text === null) continue;
    const told = Number(message.created ?? message.timestamp);
    created = Number.isFinite(told) && told > 0 ? told : created + 1;
    const own = /** @type {string} */ (ids.get(message.id ?? message));
    /** @type {any} */
    const kept = { id: own, conversation: id, role: message.role, content: text, created,
      parent: isTree ? findParent(raw, message, ids) : previous };
    for (const name of ["reason", "error"]) if (typeof message[name] === "string") kept[name] = message[name];
    if (Array.isArray(message.tokens) && message.tokens.every(isToken)) kept.tokens = message.tokens;
    if (Number.isInteger(message.n_kept)) kept.n_kept = message.n_kept;
    const timings = numbersOf(message.timings);
    if (["prompt_n", "prompt_ms", "predicted_n"].every((name) => name in timings)) kept.timings = timings;
    if (Number.isFinite(message.first_ms)) kept.first_ms = message.first_ms;
    if (Array.isArray(message.attachments)) kept.attachments = message.attachments.filter(isFile);
    made.messages.set(own, kept);
    previous = own;
  }
  const leaf = ids.get(head.leaf ?? head.currNode);
  Object.assign(made.head, {
    title: String(head.title ?? head.name ?? "Imported").slice(0, 200), named: true,
    created: Number(head.created) || Date.now(), leaf: leaf && made.messages.has(leaf) ? leaf : previous,
  });
  return made;
}

/** The nearest message above that was taken over. @param {any[]} raw @param {any} message @param {Map<any, string>} ids */
function findParent(raw, message, ids) {
  const byIdOf = new Map(raw.map((one) => [one?.id, one]));
  let at = byIdOf.get(message.parent);
  for (let n = 0; at && n < raw.length; n++, at = byIdOf.get(at.parent)) {
    if (["user", "assistant"].includes(at.role)) return ids.get(at.id) ?? null;
  }
  return null;
}

/** @param {any} value */
const plainObject = (value) => (value && typeof value === "object" && !Array.isArray(value) ? { ...value } : {});
/** @param {any} value */
const numbersOf = (value) => Object.fromEntries(Object.entries(plainObject(value)).filter(([, one]) => Number.isFinite(one)));
/** @param {any} content @returns {string | null} */
const textOf = (content) =>
  typeof content === "string" ? content
    : Array.isArray(content) ? content.map((part) => (typeof part?.text === "string" ? part.text : "")).join("") : null;
/** @param {any} one */
const isChoice = (one) => Number.isInteger(one?.id) && Number.isFinite(one.p) && Array.isArray(one.bytes);
/** @param {any} one */
const isToken = (one) => isChoice(one) && Array.isArray(one.top) && one.top.every(isChoice);
/** @param {any} one */
const isFile = (one) => typeof one?.name === "string" && typeof one.text === "string" && Number.isFinite(one.n_tokens);

/** Report an answer: a file with the prompt, the answer and the settings, for whoever has to look into it.
 * @param {any} page @param {Message} message */
export function reportAnswer(page, message) {
  void openDialog("Report this answer", (body, close) => {
    const kind = el("select", { id: "report-kind" }, ...["harmful or offensive", "wrong", "private data", "broken output", "something else"].map((name) => el("option", {}, name)));
    const comment = el("textarea", { id: "report-comment", rows: 4, dir: "auto" });
    const save = () => {
      close();
      const settings = { ...page.conversation.head.settings };
      const request = message.request ?? { messages: page.conversation.path(message.parent).map((/** @type {Message} */ m) => ({ role: m.role, content: sentText(m) })) };
      const defaults = Object.fromEntries(page.info.sampling.map((/** @type {any} */ one) => [one.name, one.default]));
      const { model, version, facts } = page.info;
      download(`report-${today()}.json`, JSON.stringify({
        format: "gemmafile report 1", reported: new Date().toISOString(), reason: kind.value, comment: comment.value,
        model, version, facts: Object.fromEntries(facts), request, defaults, settings, answer: message.content,
        token_ids: message.tokens?.map((token) => token.id), finish: message.reason, timings: message.timings,
      }, null, 1));
    };
    body.append(
      el("p", { class: "quiet" }, "This saves a file with the prompt, the answer and the settings. Nothing is sent: pass it on to whoever should see it."),
      el("div", { class: "field" }, el("label", { for: "report-kind" }, "What is wrong"), kind),
      el("div", { class: "field" }, el("label", { for: "report-comment" }, "Comment"), comment),
      el("div", { class: "buttons" }, el("button", { type: "button", class: "button strong", onclick: () => { try { save(); } catch (error) { report(error); } } }, "Save the report")),
    );
  }, "narrow");
}

/** @param {any} page @param {() => void} onDone @returns {{label: string, run: () => void}[]} */
export const dataMenu = (page, onDone) => [
  { label: "Export this conversation as Markdown", run: () => void exportMarkdown(page.conversation.id) },
  { label: "Export this conversation as JSON", run: () => void exportJson([page.conversation.id]) },
  { label: "Export all conversations", run: () => void exportJson() },
  { label: "Import conversations…", run: () => importFile(onDone) },
];
