// The server, as the page asks it: JSON, streams of events, the key, errors.

import { ask, toast } from "./dom.js";

/** @typedef {{id: number, bytes: number[], p: number}} Choice  a token and its log-probability */
/** @typedef {Choice & {top: Choice[]}} Token */
/** @typedef {{text?: string, tokens?: Token[], progress?: {done: number, total: number, cached: number},
 *   end?: {reason: string, timings: any}}} Piece  of an answer as it comes */

export class ServerError extends Error {
  /** @param {number} status @param {any} body */
  constructor(status, body) {
    const error = body?.error ?? {};
    super(typeof error === "string" ? error : error.message ?? `the server answered ${status}`);
    this.status = status;
    this.progress = error.progress ?? body?.progress;
    this.kind = error.type ?? "";
  }
}

const KEY = "gemmafile-key";
let key = read();

function read() {
  const match = /^#key=(.+)$/.exec(location.hash);
  if (match) {
    history.replaceState(null, "", location.pathname + location.search);
    return decodeURIComponent(match[1]);
  }
  try { return sessionStorage.getItem(KEY) ?? ""; } catch { return ""; }
}

/** @type {Promise<boolean> | null} */
let asking = null;

/** Ask for the key, once however many requests wait for it. */
function askForKey() {
  asking ??= (async () => {
    const given = await ask("This server wants a key", "API key, as it was printed when the server started", "", { type: "password" });
    asking = null;
    if (!given) return false;
    key = given.trim();
    try { sessionStorage.setItem(KEY, key); } catch { /* it is asked for again next time */ }
    return true;
  })();
  return asking;
}

/** A response that is well, or a ServerError.
 * @param {string} path relative to the page @param {RequestInit & {json?: any}} [options] @returns {Promise<Response>} */
export async function call(path, { json, ...options } = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    if (json !== undefined) headers.set("Content-Type", "application/json");
    const body = json === undefined ? options.body : JSON.stringify(json);
    const method = options.method ?? (body === undefined ? "GET" : "POST");
    let response;
    try {
      response = await fetch(path, { ...options, method, headers, body });
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") throw error;
      throw new ServerError(0, { error: { message: "The server cannot be reached. Is it still running?" } });
    }
    if (response.ok) return response;
    const found = await response.json().catch(() => null);
    if (response.status === 401 && (await askForKey())) continue;
    throw new ServerError(response.status, found);
  }
}

/** @param {string} path @param {any} [json] @param {AbortSignal} [signal] @returns {Promise<any>} */
export const getJson = async (path, json, signal) => (await call(path, { json, signal })).json();

/** The values of server-sent events. @param {Response} response */
async function* events(response) {
  const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      waiting += value;
      let at;
      while ((at = waiting.indexOf("\n\n")) >= 0) {
        const lines = waiting.slice(0, at).split("\n");
        waiting = waiting.slice(at + 2);
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (!data || data === "[DONE]") continue;
        const found = JSON.parse(data);
        if (found.error) throw new ServerError(found.error.code ?? 500, found);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** JSON has no -Infinity: null stands for it. */
const NEVER = -9999;
/** @param {any} entry @returns {Choice} */
const choiceOf = (entry) => ({ id: entry.id, bytes: entry.bytes ?? [...new TextEncoder().encode(entry.token)], p: entry.logprob ?? NEVER });
/** @param {any[] | undefined} entries @returns {Token[] | undefined} */
const tokensOf = (entries) =>
  entries?.map((entry) => ({ ...choiceOf(entry), top: (entry.top_logprobs ?? []).map(choiceOf) }));
/** @param {any} found */
const progressOf = (found) =>
  found && { done: found.processed, total: found.total, cached: found.cache ?? 0 };

/** Objects hold what the schema names, and nothing else. @param {any} schema */
const formOf = (schema) => ({ type: "json_schema", json_schema: { name: "answer", schema } });

/** An answer to a conversation, by the model's own template. @param {any} request @param {AbortSignal} signal
 * @returns {AsyncGenerator<Piece>} */
export async function* chatStream(request, signal) {
  const { n_probs: nProbs, json_schema: schema, n_predict: length, ...rest } = request;
  const json = { ...rest, stream: true, return_progress: true };
  if (nProbs) Object.assign(json, { logprobs: true, top_logprobs: nProbs });
  if (schema) json.response_format = formOf(schema);
  if (length >= 0) json.max_tokens = length;
  let reason = "";
  let timings = null;
  for await (const found of events(await call("v1/chat/completions", { json, signal }))) {
    const choice = found.choices?.[0];
    timings = found.timings ?? timings;
    if (found.prompt_progress) yield { progress: progressOf(found.prompt_progress) };
    if (choice) yield { text: choice.delta?.content ?? "", tokens: tokensOf(choice.logprobs?.content) };
    reason = choice?.finish_reason ?? reason;
  }
  yield { end: { reason: reason || "stop", timings } };
}

/** What follows after token ids, or a text. @param {any} request @param {AbortSignal} signal
 * @returns {AsyncGenerator<Piece>} */
export async function* completionStream(request, signal) {
  const { json_schema: schema, ...rest } = request;
  const json = { ...rest, ...(schema ? { response_format: formOf(schema) } : {}), stream: true, return_progress: true };
  for await (const found of events(await call("completion", { json, signal }))) {
    if (found.prompt_progress) yield { progress: progressOf(found.prompt_progress) };
    yield { text: found.content ?? "", tokens: tokensOf(found.completion_probabilities) };
    if (found.stop) {
      const reason = { eos: "stop", word: "stop", limit: "length" }[/** @type {string} */ (found.stop_type)] ?? "length";
      yield { end: { reason, timings: found.timings } };
    }
  }
}

/** Text of tokens; half characters at the end are left out. @param {Choice[]} tokens */
export function textOf(tokens) {
  return new TextDecoder().decode(new Uint8Array(tokens.flatMap((token) => token.bytes)), { stream: true });
}

/** Tell of an error that nobody waits for. @param {unknown} error */
export function report(error) {
  if (/** @type {Error} */ (error)?.name === "AbortError") return;
  toast(/** @type {Error} */ (error)?.message ?? String(error));
}
