// Completion: one text, and the model goes on from it. No template, no turns.

import { completionStream, getJson, report, textOf } from "./api.js";
import { page } from "./chat.js";
import { announce, byId, debounce, untilAborted, withCommas } from "./dom.js";
import { completeSettings, requestFields } from "./settings.js";
import * as store from "./store.js";
import { tokenView } from "./tokens.js";

/** @typedef {import("./api.js").Token} Token */

/** What was written last: the text before it, and its tokens. @type {{before: string, tokens: Token[]} | null} */
let last = null;
/** Texts to go back to. @type {string[]} */
const undo = [];
/** @type {AbortController | null} */
let abort = null;

const text = () => byId("notebook-text");
const keep = debounce(600, () => store.setWord("notebook", text().value));

export function startNotebook() {
  byId("notebook-go").addEventListener("click", () => void goOn());
  byId("notebook-stop").addEventListener("click", () => abort?.abort());
  byId("notebook-undo").addEventListener("click", () => back());
  byId("notebook-retry").addEventListener("click", () => { const from = last?.before; if (from !== undefined) { text().value = from; void goOn(); } });
  byId("notebook-show").addEventListener("click", () => showTokens(byId("notebook-tokens").hidden));
  text().addEventListener("input", () => { last = null; keep(); count(); sync(); });
  text().addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); void goOn(); }
  });
  void store.word("notebook", "").then((kept) => { text().value = kept; count(); });
}

const count = debounce(400, async () => {
  if (abort || byId("notebook-view").hidden) return;
  try {
    const { tokens } = await getJson("tokenize", { content: text().value.toWellFormed(), add_special: true, parse_special: byId("notebook-special").checked });
    byId("notebook-stats").textContent = `${withCommas(tokens.length)} of ${withCommas(page.info.context)} tokens`;
  } catch { /* it is only a number */ }
});

function back() {
  const previous = undo.pop();
  if (previous === undefined) return;
  text().value = previous;
  last = null;
  showTokens(false);
  keep();
  count();
}

function sync() {
  byId("notebook-go").hidden = !!abort;
  byId("notebook-stop").hidden = !abort;
  byId("notebook-undo").disabled = !!abort || !undo.length;
  byId("notebook-retry").disabled = !!abort || !last;
  byId("notebook-show").disabled = !!abort || !last?.tokens.length;
  text().readOnly = !!abort;
}

/** @param {boolean} isOn */
function showTokens(isOn) {
  const box = byId("notebook-tokens");
  const on = isOn && !!last?.tokens.length;
  box.hidden = !on;
  text().hidden = on;
  byId("notebook-show").setAttribute("aria-pressed", String(on));
  if (on && last) {
    const { before, tokens } = last;
    box.replaceChildren(before, tokenView(tokens, (at, choice) => {
      const kept = [...tokens.slice(0, at), { ...choice, top: tokens[at].top }];
      text().value = before;
      showTokens(false);
      void goOn(kept);
    }));
  }
  sync();
}

/** Go on from the text, or from the text and tokens after it. @param {Token[]} [kept] */
async function goOn(kept = []) {
  if (abort) return;
  showTokens(false);
  const box = text();
  const before = box.value;
  undo.push(before);
  const tokens = [...kept];
  abort = new AbortController();
  sync();
  box.value = before + textOf(kept);
  try {
    await Promise.race([page.ready, untilAborted(abort.signal)]);
    const fields = requestFields(completeSettings(page.conversation.head.settings));
    const special = byId("notebook-special").checked;
    const found = await getJson("tokenize", { content: before.toWellFormed(), add_special: true, parse_special: special });
    const prompt = [...found.tokens, ...kept.map((token) => token.id)];
    if (kept.length) fields.n_begun = kept.length;
    if (!prompt.length) throw new Error("Write something first: there is nothing to go on from");
    for await (const piece of completionStream({ prompt, ...fields }, abort.signal)) {
      if (piece.progress && !piece.text) byId("notebook-stats").textContent = `Reading, ${piece.progress.done} of ${piece.progress.total} tokens`;
      if (piece.tokens) tokens.push(...piece.tokens);
      if (piece.text) {
        const sticks = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
        box.value += piece.text;
        if (sticks) box.scrollTop = box.scrollHeight;
      }
      const timings = piece.end?.timings;
      if (timings) byId("notebook-stats").textContent = `${timings.predicted_n} tokens · ${timings.predicted_per_second.toFixed(1)} tokens/s`;
    }
    announce("The text is finished");
  } catch (error) {
    report(error);
  }
  abort = null;
  last = { before, tokens };
  if (byId("notebook-stats").textContent.startsWith("Reading")) count();
  keep();
  sync();
}

export const isWriting = () => abort !== null;
export const stopWriting = () => abort?.abort();
