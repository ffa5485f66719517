// The list of conversations: opening, searching, renaming, deleting.

import { headOf, isRunning, openConversation, page, show } from "./chat.js";
import { announce, ask, byId, debounce, el, iconButton, openMenu, toast } from "./dom.js";
import { exportMarkdown, exportJson } from "./exports.js";
import * as store from "./store.js";
import { Conversation } from "./tree.js";

/** @typedef {import("./store.js").Head} Head */

export function startSidebar() {
  byId("search").addEventListener("input", debounce(150, () => void listConversations()));
  byId("search").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape" && byId("search").value) { event.stopPropagation(); byId("search").value = ""; void listConversations(); }
    if (event.key === "ArrowDown") { event.preventDefault(); byId("conversations").querySelector("button")?.focus(); }
  });
  byId("conversations").addEventListener("keydown", (/** @type {any} */ event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[/** @type {string} */ (event.key)];
    if (!step) return;
    event.preventDefault();
    const all = [...byId("conversations").querySelectorAll(".conversation > button:first-child")];
    const at = all.indexOf(event.target.closest(".conversation")?.firstElementChild);
    (all[at + step] ?? (step < 0 ? byId("search") : all[at]))?.focus();
  });
  store.onChange((name) => { if (name === "conversations") later(); });
}

const later = debounce(200, () => void listConversations());

/** Show the list again, as it is stored. */
export async function listConversations() {
  const wanted = byId("search").value.trim().toLowerCase();
  /** @type {Head[]} */
  const heads = (await store.all("conversations")).sort((a, b) => b.updated - a.updated);
  const found = wanted ? await search(heads, wanted) : heads.map((head) => ({ head, snippet: null }));
  const list = byId("conversations");
  const items = [];
  let day = "";
  for (const { head, snippet } of found) {
    const name = dayOf(head.updated);
    if (!wanted && name !== day) items.push(el("li", { class: "day" }, (day = name)));
    items.push(item(head, snippet));
  }
  list.replaceChildren(...items);
  byId("no-conversations").hidden = found.length > 0;
  byId("no-conversations").textContent = wanted ? "Nothing found" : "Conversations are kept in this browser.";
  if (wanted) announce(`${found.length} conversations found`);
}

/** @param {number} time */
function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - time) / 864e5);
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days < 7 ? "This week" : days < 31 ? "This month" : "Earlier";
}

/** Conversations with the words in their title or in a message. @param {Head[]} heads @param {string} wanted */
async function search(heads, wanted) {
  /** @type {Map<string, any>} */
  const snippets = new Map();
  for (const message of await store.all("messages")) {
    if (snippets.has(message.conversation)) continue;
    const text = message.content.replace(/\s+/g, " ");
    const at = text.toLowerCase().indexOf(wanted);
    if (at < 0) continue;
    const from = Math.max(0, at - 18);
    snippets.set(message.conversation, [
      (from ? "…" : "") + text.slice(from, at), text.slice(at, at + wanted.length), text.slice(at + wanted.length, at + 60),
    ]);
  }
  return heads.filter((head) => snippets.has(head.id) || head.title.toLowerCase().includes(wanted))
    .map((head) => ({ head, snippet: snippets.get(head.id) ?? null }));
}

/** @param {Head} head @param {string[] | null} snippet */
function item(head, snippet) {
  const isCurrent = head.id === page.conversation?.id;
  const open = el("button", { type: "button", title: head.title, onclick: () => choose(head.id) },
    el("span", { class: "name" }, (isRunning(head.id) ? "● " : "") + head.title),
    snippet && el("span", { class: "snippet" }, snippet[0], el("b", {}, snippet[1]), snippet[2]));
  if (isCurrent) open.setAttribute("aria-current", "true");
  const more = iconButton("more", `More about ${head.title}`, () => openMenu(more, [
    { label: "Rename", run: () => void rename(head) },
    { label: "Export as Markdown", run: () => void exportMarkdown(head.id) },
    { label: "Export as JSON", run: () => void exportJson([head.id]) },
    { label: "Delete", bad: true, run: () => void removeConversation(head) },
  ]), { "aria-haspopup": "menu" });
  return el("li", { class: `conversation ${isCurrent ? "current" : ""}` }, open, more);
}

/** @param {string | null} id */
export async function choose(id) {
  location.hash = "";
  if (matchMedia("(max-width: 760px)").matches) byId("app").classList.add("no-side"), syncSide();
  await openConversation(id);
}

/** Show or hide the list. @param {boolean} isOpen */
export function showSide(isOpen) {
  byId("app").classList.toggle("no-side", !isOpen);
  syncSide();
  if (isOpen) byId("search").focus();
  else byId("side-open").focus();
  try { localStorage.setItem("gemmafile-side", isOpen ? "open" : "closed"); } catch { /* not kept, then */ }
}

/** On a narrow window the list lies over the page, which waits. */
export function syncSide() {
  const isOpen = !byId("app").classList.contains("no-side");
  const isOver = isOpen && matchMedia("(max-width: 760px)").matches;
  byId("side-open").setAttribute("aria-expanded", String(isOpen));
  byId("scrim").hidden = !isOver;
  byId("main").inert = isOver;
}

/** @param {Head} head */
async function rename(head) {
  const title = (await ask("Rename", "Title", head.title))?.trim();
  if (!title) return;
  const target = headOf(head.id) ?? head;
  Object.assign(target, { title, named: true });
  await store.put("conversations", target);
  if (page.conversation.id === head.id) await show();
  await listConversations();
}

/** @param {Head} head */
async function removeConversation(head) {
  if (isRunning(head.id)) { toast("An answer is being written there: stop it first"); return; }
  const messages = await store.messagesOf(head.id);
  await store.remove("messages", ...messages.map((message) => message.id));
  await store.remove("conversations", head.id);
  if (page.conversation.id === head.id) await openConversation(null);
  await listConversations();
  toast(`“${head.title}” deleted`, "Undo", async () => {
    await new Conversation(head, messages).save(...messages);
    await listConversations();
  });
}
