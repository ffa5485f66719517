// Where messages are written: the box, attached files, dropped and pasted ones.

import { call, report } from "./api.js";
import { page, refreshPrompt, send, stop } from "./chat.js";
import { byId, debounce, el, icon, iconButton, toast, withCommas } from "./dom.js";
import * as store from "./store.js";
import { sentText } from "./tree.js";

const MAX_BYTES = 32 * 1024 * 1024;

/** @type {{name: string, text: string, n_tokens: number, element: any, isReady: boolean}[]} */
let attached = [];

/** The words in the box with the files above it, as they would be sent. */
export function draft() {
  return sentText({ attachments: attached.filter((file) => file.isReady), content: byId("message-box").value.trim() });
}

export function startComposer() {
  const box = byId("message-box");
  const keep = debounce(500, () => store.setWord("draft", box.value));
  page.draft = draft;
  box.addEventListener("input", () => { fit(); keep(); refreshPrompt(); });
  box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void submit();
  });
  byId("composer").addEventListener("submit", (/** @type {Event} */ event) => { event.preventDefault(); void submit(); });
  byId("stop").addEventListener("click", stop);
  byId("attach").addEventListener("click", () => byId("file-input").click());
  byId("file-input").addEventListener("change", () => { void attach([...byId("file-input").files]); byId("file-input").value = ""; });
  box.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) { event.preventDefault(); void attach(files); }
  });
  startDropping();
  void store.word("draft", "").then((text) => { if (text && !box.value) { box.value = text; fit(); } });
}

function fit() {
  const box = byId("message-box");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

/** @param {string} text */
export function write(text) {
  const box = byId("message-box");
  box.value = text;
  fit();
  refreshPrompt();
  box.focus();
}

async function submit() {
  const box = byId("message-box");
  const text = box.value.trim();
  if ((!text && !attached.length) || !byId("stop").hidden) return;
  if (attached.some((file) => !file.isReady)) { toast("A file is still being read"); return; }
  const files = attached.map(({ name, text: content, n_tokens }) => ({ name, text: content, n_tokens }));
  attached = [];
  byId("attachments").replaceChildren();
  write("");
  void store.setWord("draft", "");
  try {
    await send(text, files);
  } catch (error) {
    report(error);
  }
}

/** Read files on the server and put them above the box. @param {File[]} files */
async function attach(files) {
  await Promise.all(files.map(async (file) => {
    const element = el("li", { class: "chip" }, icon("clip"), el("span", {}, `${file.name}, reading…`));
    const entry = { name: file.name, text: "", n_tokens: 0, element, isReady: false };
    const drop = () => { attached = attached.filter((one) => one !== entry); element.remove(); refreshPrompt(); };
    element.append(iconButton("x", `Remove ${file.name}`, drop));
    byId("attachments").append(element);
    attached.push(entry);
    try {
      if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than 32 MB`);
      const found = await (await call(`files?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
      Object.assign(entry, { text: found.text, n_tokens: found.n_tokens, isReady: true });
      const size = `${withCommas(found.n_tokens)} tokens`;
      element.querySelector("span").textContent = [file.name, found.pages && `${found.pages} pages`, size].filter(Boolean).join(", ");
      if (found.n_tokens > page.info.context) {
        element.classList.add("bad");
        toast(`${file.name} has ${size}, and the context holds ${withCommas(page.info.context)}`);
      }
      if (found.note) toast(`${file.name}: ${found.note}`);
      refreshPrompt();
    } catch (error) {
      drop();
      report(error);
    }
  }));
  byId("message-box").focus();
}

function startDropping() {
  let depth = 0;
  const over = byId("drop");
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth++; over.hidden = false; event.preventDefault(); } });
  addEventListener("dragleave", (event) => { if (hasFiles(event) && --depth <= 0) { depth = 0; over.hidden = true; } });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    over.hidden = true;
    void attach([...(event.dataTransfer?.files ?? [])]);
  });
}
