// A conversation: a tree of messages, of which one path is shown. Changing it stores it.

import { toast } from "./dom.js";
import * as store from "./store.js";

/** @typedef {import("./store.js").Message} Message */

export class Conversation {
  /** @param {import("./store.js").Head} head @param {Message[]} messages */
  constructor(head, messages) {
    this.head = head;
    /** @type {Map<string, Message>} */
    this.messages = new Map(messages.map((message) => [message.id, message]));
    this.isStored = messages.length > 0;
    this.isKept = true;
  }

  /** @param {any} settings */
  static make(settings) {
    const now = Date.now();
    const head = { id: store.newId(), title: "New chat", created: now, updated: now, settings, leaf: null };
    return new Conversation(head, []);
  }

  /** @param {string} id */
  static async load(id) {
    const head = await store.one("conversations", id);
    return head ? new Conversation(head, await store.messagesOf(id)) : null;
  }

  get id() { return this.head.id; }

  /** The messages that are shown, the first one first. @param {string | null} [end] @returns {Message[]} */
  path(end = this.head.leaf) {
    const found = [];
    const seen = new Set();
    let at = end;
    while (at && !seen.has(at)) {
      const message = this.messages.get(at);
      if (!message) break;
      seen.add(at);
      found.unshift(message);
      at = message.parent;
    }
    return found;
  }

  /** Messages that stand in the same place, oldest first. @param {Message} message */
  siblings(message) { return this.children(message.parent); }

  /** @param {string | null} parent */
  children(parent) {
    return [...this.messages.values()].filter((m) => m.parent === parent).sort((a, b) => a.created - b.created);
  }

  /** @param {Pick<Message, "parent" | "role" | "content"> & Partial<Message>} parts */
  async add(parts) {
    const last = Math.max(0, ...[...this.messages.values()].map((m) => m.created));
    const message = { id: store.newId(), conversation: this.id, created: Math.max(Date.now(), last + 1), ...parts };
    this.messages.set(message.id, message);
    this.head.leaf = message.id;
    if (!this.head.named && message.role === "user" && this.path().length === 1) this.head.title = titleOf(message);
    await this.save(message);
    return message;
  }

  /** Store the head, and the messages that changed. A browser that cannot is no reason to stop: it is told, once.
   * @param {...Message} messages */
  async save(...messages) {
    try {
      await this.write(...messages);
      this.isKept = true;
    } catch (error) {
      if (this.isKept) toast(`This browser cannot keep this conversation: ${/** @type {Error} */ (error).message}`);
      this.isKept = false;
    }
  }

  /** `save`, which fails where the browser does. @param {...Message} messages */
  async write(...messages) {
    this.isStored = true;
    this.head.updated = Date.now();
    if (messages.length) await store.put("messages", ...messages);
    await store.put("conversations", this.head);
  }

  /** Show the branch through this message: on from it, always the newest. @param {Message} message */
  async show(message) {
    let at = message;
    for (;;) {
      const next = this.children(at.id).at(-1);
      if (!next) break;
      at = next;
    }
    this.head.leaf = at.id;
    await this.save();
  }

  /** Take a message and all that follow it out; returns them. @param {Message} message */
  async cut(message) {
    const gone = [message];
    for (let i = 0; i < gone.length; i++) gone.push(...this.children(gone[i].id));
    const siblings = this.siblings(message);
    const at = siblings.indexOf(message);
    for (const each of gone) this.messages.delete(each.id);
    const other = siblings[at - 1] ?? siblings[at + 1];
    this.head.leaf = message.parent;
    if (other) await this.show(other);
    else await this.save();
    await store.remove("messages", ...gone.map((each) => each.id));
    return gone;
  }

  /** Undo `cut`. @param {Message[]} messages @param {string | null} leaf */
  async putBack(messages, leaf) {
    for (const message of messages) this.messages.set(message.id, message);
    this.head.leaf = leaf;
    await this.save(...messages);
  }
}

/** @param {Pick<Message, "content" | "attachments">} message */
function titleOf(message) {
  const line = message.content.trim().split("\n")[0] || message.attachments?.[0]?.name || "New chat";
  return line.length > 60 ? `${line.slice(0, 57)}…` : line;
}

/** What the model is sent for a message: the files it carries, then its words.
 * @param {Pick<Message, "content" | "attachments">} message */
export function sentText(message) {
  const files = (message.attachments ?? []).map((file) => {
    const longest = Math.max(2, ...[...file.text.matchAll(/`+/g)].map((run) => run[0].length));
    const fence = "`".repeat(longest + 1);
    return `${file.name}\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}\n\n`;
  });
  return files.join("") + message.content;
}
