// What the browser keeps: conversations, presets, a few words. IndexedDB, or memory where there is none.

/** @typedef {{name: string, text: string, n_tokens: number}} Attachment */
/** @typedef {{id: string, conversation: string, parent: string | null, role: "user" | "assistant", content: string,
 *   created: number, attachments?: Attachment[], tokens?: import("./api.js").Token[], n_kept?: number, reason?: string,
 *   timings?: any, first_ms?: number, error?: string, request?: any}} Message */
/** @typedef {{id: string, title: string, created: number, updated: number, settings: any, leaf: string | null,
 *   named?: boolean}} Head  of a conversation */

const STORES = ["conversations", "messages", "presets", "words"];

/** @type {Promise<IDBDatabase | null>} */
const opened = new Promise((resolve) => {
  try {
    const request = indexedDB.open("gemmafile", 1);
    request.onupgradeneeded = () => {
      const db = request.result;
      db.createObjectStore("conversations", { keyPath: "id" });
      db.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
      db.createObjectStore("presets", { keyPath: "name" });
      db.createObjectStore("words", { keyPath: "key" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  } catch {
    resolve(null);
  }
});

/** @type {Record<string, Map<string, any>>} */
const memory = Object.fromEntries(STORES.map((name) => [name, new Map()]));
/** @param {any} value */
const keyOf = (value) => value.id ?? value.name ?? value.key;

/** Is what is stored here kept when the page is closed? */
export const isKept = async () => (await opened) !== null;

/** @param {string[]} names @param {IDBTransactionMode} mode @param {(get: (name: string) => IDBObjectStore) => IDBRequest | void} work
 * @returns {Promise<any>} */
async function transact(names, mode, work) {
  const db = /** @type {IDBDatabase} */ (await opened);
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(names, mode);
    const request = work((name) => transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("its storage does not answer"));
  });
}

/** @param {string} name @returns {Promise<any[]>} */
export async function all(name) {
  if (!(await opened)) return [...memory[name].values()];
  return transact([name], "readonly", (get) => get(name).getAll());
}

/** @param {string} name @param {string} id @returns {Promise<any>} */
export async function one(name, id) {
  if (!(await opened)) return memory[name].get(id);
  return transact([name], "readonly", (get) => get(name).get(id));
}

/** @param {string} name @param {...any} values */
export async function put(name, ...values) {
  if (!(await opened)) return values.forEach((value) => memory[name].set(keyOf(value), value));
  await transact([name], "readwrite", (get) => { for (const value of values) get(name).put(value); });
  channel?.postMessage(name);
}

/** @param {string} name @param {...string} ids */
export async function remove(name, ...ids) {
  if (!(await opened)) return ids.forEach((id) => memory[name].delete(id));
  await transact([name], "readwrite", (get) => { for (const id of ids) get(name).delete(id); });
  channel?.postMessage(name);
}

/** @param {string} conversation @returns {Promise<Message[]>} */
export async function messagesOf(conversation) {
  if (!(await opened)) return [...memory.messages.values()].filter((m) => m.conversation === conversation);
  return transact(["messages"], "readonly", (get) => get("messages").index("conversation").getAll(conversation));
}

/** @param {string} key @param {any} [otherwise] */
export const word = async (key, otherwise = null) => (await one("words", key))?.value ?? otherwise;
/** @param {string} key @param {any} value */
export const setWord = (key, value) => put("words", { key, value });

const channel = "BroadcastChannel" in window ? new BroadcastChannel("gemmafile") : null;
/** Hear of changes that other windows make. @param {(name: string) => void} run */
export function onChange(run) {
  if (channel) channel.onmessage = (event) => run(event.data);
}

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
