// The model panel, the exact prompt, the list of keys.

import { getJson } from "./api.js";
import { exactPrompt, page } from "./chat.js";
import { el, openDialog, setRendered } from "./dom.js";

export function showAbout() {
  void openDialog(page.info.model, (body) => {
    const facts = el("dl", { class: "facts" });
    for (const [name, value] of page.info.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
    const papers = el("div", {});
    body.append(facts, papers);
    getJson("page/card").then((found) => {
      if (found.notice) papers.append(el("p", {}, found.notice));
      if (found.card) papers.append(paper("Model card", found.card));
      if (found.limits) papers.append(paper("Usage and limitations", found.limits));
      if (found.licence) papers.append(el("details", { class: "papers" }, el("summary", {}, "Licence"), el("pre", { tabIndex: 0 }, found.licence)));
      if (!papers.children.length) papers.append(el("p", { class: "quiet" }, "This file carries no model card and no licence."));
    }, (error) => papers.append(el("p", { class: "problem" }, error.message)));
  });
}

/** @param {string} title @param {string} html */
function paper(title, html) {
  const content = el("div", { class: "content" });
  setRendered(content, html);
  return el("details", { class: "papers" }, el("summary", {}, title), content);
}

export function showExactPrompt() {
  void openDialog("The exact prompt", (body) => {
    const box = el("div", { class: "pieces", id: "pieces", tabIndex: 0 }, "…");
    const note = el("p", { class: "quiet" });
    body.append(note, box);
    exactPrompt().then((found) => {
      note.textContent = `${found.tokens.length} tokens. Control tokens are coloured; all else is text.`;
      box.replaceChildren(...found.pieces.map((/** @type {[string, boolean]} */ [text, isControl]) =>
        el("span", { class: isControl ? "control" : "" }, text)));
    }, (error) => { note.textContent = error.message; });
  });
}

export function showKeys() {
  const keys = [
    ["Enter", "send"], ["Shift+Enter", "break the line"], ["Esc", "stop the answer; close what is open"],
    ["Ctrl+Shift+O", "new chat"], ["Ctrl+K", "search conversations"], ["Ctrl+,", "settings"], ["/", "to the message box"],
    ["Ctrl+Enter", "go on, in the notebook; save, while editing"], ["Arrows", "move in lists, menus and tokens"],
  ];
  void openDialog("Keyboard shortcuts", (body) => {
    const list = el("div", { class: "keys" });
    for (const [key, what] of keys) list.append(el("span", {}, el("kbd", {}, key)), el("span", {}, what));
    body.append(list);
  }, "narrow");
}
