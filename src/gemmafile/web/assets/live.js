// Markdown on the screen: an answer while it is written, and whole texts. The server renders (see render.py).

import { getJson } from "./api.js";
import { announce, el, setRendered } from "./dom.js";

const PAUSE_MS = 90;

/** @type {Map<string, string>} */
const rendered = new Map();

/** HTML of whole texts, from memory where it is known. @param {string[]} texts @returns {Promise<(string | null)[]>} */
export async function renderAll(texts) {
  const unknown = [...new Set(texts.filter((text) => text && !rendered.has(text)))];
  for (let i = 0; i < unknown.length; i += 40) {
    const part = unknown.slice(i, i + 40).map((text) => text.toWellFormed());
    try {
      const { html } = await getJson("render", { texts: part });
      html.forEach((/** @type {string} */ found, /** @type {number} */ at) => rendered.set(unknown[i + at], found));
    } catch {
      break; // shown as plain text
    }
  }
  while (rendered.size > 600) rendered.delete(/** @type {string} */ (rendered.keys().next().value));
  return texts.map((text) => rendered.get(text) ?? (text ? null : ""));
}

/** Show a whole text in an element. @param {Element} element @param {string} text */
export async function showText(element, text) {
  const [html] = rendered.has(text) || !text ? [rendered.get(text) ?? ""] : await renderAll([text]);
  if (html === null) element.replaceChildren(el("div", { class: "plain" }, text));
  else setRendered(element, html);
}

/** A text that grows, in an element that may be another one later. Finished blocks are rendered once. */
export class LiveText {
  /** @param {string} text that is there already */
  constructor(text = "") {
    this.text = text;
    this.used = 0;
    this.isOver = false;
    /** @type {Promise<void> | null} */
    this.running = null;
    this.done = el("div", { class: "done" });
    this.open = el("div", { class: "open" });
    this.element = el("div", { class: "live" }, this.done, this.open);
    this.onGrow = () => {};
  }

  /** @param {string} text */
  push(text) {
    if (!text) return;
    this.text += text;
    // The first words are shown as they come, not only when they are rendered.
    if (!this.open.hasChildNodes() && !this.done.hasChildNodes()) this.open.append(el("div", { class: "plain" }, this.text));
    this.running ??= this.run();
  }

  async run() {
    let seen = -1;
    while (!this.isOver && seen !== this.text.length) {
      seen = this.text.length;
      await this.step();
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
    this.running = null;
  }

  async step() {
    const text = this.text.slice(this.used);
    let found;
    try {
      found = await getJson("render", { text: text.toWellFormed() });
    } catch {
      this.open.replaceChildren(el("div", { class: "plain" }, text));
      this.onGrow();
      return;
    }
    if (this.isOver) return;
    if (found.done) {
      const block = el("div");
      setRendered(block, found.done);
      announce(spoken(block));
      this.done.append(...block.childNodes);
      this.used += found.used;
    }
    setRendered(this.open, found.open);
    this.onGrow();
  }

  /** The whole text, rendered once more as a whole. */
  async finish() {
    this.isOver = true;
    if (this.used < this.text.length) announce(this.text.slice(this.used));
    const box = el("div");
    await showText(box, this.text);
    return box;
  }
}

/** What a reader is told of a block: not the words on its buttons. @param {Element} block */
function spoken(block) {
  const copy = /** @type {Element} */ (block.cloneNode(true));
  copy.querySelectorAll(".code-head").forEach((head) => head.remove());
  return copy.textContent ?? "";
}
