// The token view: every token with how likely it was; its alternatives, and a click goes on from one of them.

import { byId, el, place } from "./dom.js";

/** @typedef {import("./api.js").Token} Token */
/** @typedef {import("./api.js").Choice} Choice */

/** @param {number} logprob */
const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 99.95 ? "100%" : p >= 1 ? `${p.toFixed(1)}%` : p >= 0.01 ? `${p.toFixed(2)}%` : "<0.01%";
};
/** @param {number} logprob 0: unlikely, 4: nearly certain */
const shade = (logprob) => { const p = Math.exp(logprob); return p > 0.9 ? 4 : p > 0.6 ? 3 : p > 0.3 ? 2 : p > 0.1 ? 1 : 0; };
const decoder = new TextDecoder();
/** @param {Choice} choice */
const visible = (choice) => decoder.decode(new Uint8Array(choice.bytes)).replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

/** Tokens as text, in groups that are whole characters. @param {Token[]} tokens */
function* characters(tokens) {
  const stream = new TextDecoder();
  for (let i = 0; i < tokens.length; i++) {
    yield { at: i, text: stream.decode(new Uint8Array(tokens[i].bytes), { stream: true }) };
  }
}

/** An element that shows tokens. `fork` gets the place of a token and what should stand there instead.
 * @param {Token[]} tokens @param {((at: number, choice: Choice) => void) | null} fork @param {number} [nKept] tokens that were given */
export function tokenView(tokens, fork, nKept = 0) {
  const box = el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer; arrow keys move, Enter shows alternatives" });
  for (const { at, text } of characters(tokens)) {
    const token = tokens[at];
    const given = at < nKept && !token.top.length;
    const control = /^<[^<>\s]+>$/.test(text) && at === tokens.length - 1;
    // A span, not a button: it flows with the text, and may hold a line break.
    const button = el("span", {
      role: "button", class: `tok ${given ? "" : `p${shade(token.p)}`} ${control ? "control" : ""}`, tabIndex: at ? -1 : 0,
      title: given ? "given" : percent(token.p), "data-at": at, "aria-haspopup": "dialog", "aria-expanded": "false",
      "aria-label": `${visible(token)}${given ? "" : `, ${percent(token.p)}`}`,
    });
    const lines = text.split("\n");
    lines.forEach((line, i) => {
      if (i) button.append(el("span", { class: "nl" }, "⏎"), "\n");
      button.append(line);
    });
    box.append(button);
  }
  box.addEventListener("click", (/** @type {any} */ event) => {
    const button = event.target.closest(".tok");
    if (button) showAlternatives(button, tokens[Number(button.dataset.at)], Number(button.dataset.at), fork);
  });
  box.addEventListener("keydown", (/** @type {any} */ event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.target.click(); return; }
    const step = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10 }[/** @type {string} */ (event.key)];
    if (!step) return;
    event.preventDefault();
    const all = [...box.children];
    const at = all.indexOf(event.target);
    const next = all[Math.max(0, Math.min(all.length - 1, at + step))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return box;
}

/** @param {any} button @param {Token} token @param {number} at @param {((at: number, choice: Choice) => void) | null} fork */
function showAlternatives(button, token, at, fork) {
  const pop = byId("token-pop");
  const choices = token.top.some((one) => one.id === token.id) ? token.top : [token, ...token.top];
  pop.replaceChildren(
    el("p", { class: "pop-title" }, `Token ${token.id}, ${percent(token.p)}`,
      token.top.length && fork ? ". Choose another to go on from there." : ""),
    el("ul", {}, ...choices.map((choice) => el("li", {}, el("button", {
      type: "button", disabled: choice.id === token.id || !fork,
      onclick: () => { pop.hidePopover(); fork?.(at, choice); },
    }, el("span", {}, visible(choice)), el("span", {}, percent(choice.p)))))),
  );
  button.setAttribute("aria-expanded", "true");
  pop.ontoggle = (/** @type {any} */ event) => {
    if (event.newState === "closed") button.setAttribute("aria-expanded", "false");
  };
  button.focus({ preventScroll: true });
  pop.showPopover();
  place(pop, button);
  pop.querySelector("button:not(:disabled)")?.focus();
}
