// Small tools for the document: finding and making elements, dialogs, menus, toasts, what screen readers are told.

/** @typedef {Record<string, any>} Props */

/** The element with this id; there has to be one.
 * @param {string} id @returns {any} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`there is no #${id}`);
  return found;
}

/** A new element. `on…` props are listeners, `class`, `data-…` and `aria-…` are attributes, the rest are properties.
 * @param {string} tag @param {Props} [props] @param {...(Node | string | null | undefined | false)} children
 * @returns {any} */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class" || name.includes("-") || name === "role" || name === "for") made.setAttribute(name, String(value));
    else /** @type {any} */ (made)[name] = value;
  }
  for (const child of children) if (child || child === "") made.append(/** @type {any} */ (child));
  return made;
}

/** @param {string} name of a symbol in index.html @returns {SVGElement} */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button that is only an icon. @param {string} name @param {string} label @param {(event: any) => void} onclick
 * @param {Props} [props] */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick, ...props }, icon(name));
}

/** @type {any} */
const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("rendered", { createHTML: (/** @type {string} */ s) => s });

/** Put HTML from /render, which is safe, into an element. The only place of this page where HTML is parsed.
 * @param {Element} element @param {string} html */
export function setRendered(element, html) {
  element.innerHTML = policy ? policy.createHTML(html) : html;
}

let announced = 0;
/** Tell screen readers. @param {string} text */
export function announce(text) {
  const area = byId("announce");
  if (area.childElementCount > 40) area.replaceChildren();
  if (text.trim()) area.append(el("p", { id: `said-${announced++}` }, text.trim()));
}

/** A line that goes away by itself, with something to do about it.
 * @param {string} text @param {string} [action] @param {() => void} [run] */
export function toast(text, action, run) {
  const box = el("div", { class: "toast", role: "status" }, el("span", {}, text));
  const timer = setTimeout(() => box.remove(), action ? 9000 : 4500);
  if (action && run) {
    box.append(el("button", { type: "button", onclick: () => { clearTimeout(timer); box.remove(); run(); } }, action));
  }
  byId("toasts").append(box);
}

/** Open the dialog. `fill` gets its body and a function that closes it. Resolves when it is closed.
 * @param {string} title @param {(body: any, close: () => void) => void} fill @param {string} [className]
 * @returns {Promise<void>} */
export function openDialog(title, fill, className = "") {
  const dialog = byId("dialog");
  if (dialog.open) dialog.close();
  const close = () => dialog.close();
  const body = el("div", { class: "dialog-body" });
  dialog.className = className;
  dialog.replaceChildren(
    el("div", { class: "dialog-head" }, el("h2", { id: "dialog-title" }, title), iconButton("x", "Close", close)), body,
  );
  fill(body, close);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(), { once: true });
    dialog.showModal();
  });
}

/** A question with a text for an answer; null when it is not given.
 * @param {string} title @param {string} label @param {string} value @param {Props} [props] @returns {Promise<string | null>} */
export async function ask(title, label, value, props = {}) {
  /** @type {string | null} */
  let given = null;
  await openDialog(title, (body, close) => {
    const input = el("input", { type: "text", id: "asked", value, ...props });
    const form = el("form", {
      onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); given = input.value; close(); },
    }, el("div", { class: "field" }, el("label", { for: "asked" }, label), input),
    el("div", { class: "buttons" }, el("button", { class: "button strong" }, "OK")));
    body.append(form);
    queueMicrotask(() => input.select());
  }, "narrow");
  return given;
}

/** Put an open popover beside an element, inside the window. @param {any} popover @param {Element} beside */
export function place(popover, beside) {
  const at = beside.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = popover;
  const below = at.bottom + 4 + height <= innerHeight || at.top < height;
  popover.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  popover.style.top = `${below ? Math.min(at.bottom + 4, innerHeight - height - 8) : at.top - height - 4}px`;
}

/** A menu of things to do, beside a button. @param {HTMLElement} button
 * @param {{label: string, run: () => void, bad?: boolean}[]} items */
export function openMenu(button, items) {
  const menu = byId("menu");
  menu.replaceChildren(...items.map((item) =>
    el("button", {
      type: "button", role: "menuitem", class: item.bad ? "bad" : "",
      onclick: () => { menu.hidePopover(); item.run(); },
    }, item.label)));
  menu.onkeydown = (/** @type {KeyboardEvent} */ event) => {
    const buttons = [...menu.children];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const at = buttons.indexOf(/** @type {any} */ (document.activeElement));
    /** @type {any} */ (buttons[(at + step + buttons.length) % buttons.length]).focus();
  };
  button.focus();
  menu.showPopover(); // the focus goes back to the button when it closes
  place(menu, button);
  menu.firstElementChild?.focus();
}

/** Let the reader save a text as a file. @param {string} name @param {string} text @param {string} [type] */
export function download(name, text, type = "application/json") {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @param {string} text @param {HTMLElement} [button] that says it is done */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
    if (button) {
      const before = [...button.childNodes];
      button.replaceChildren(button.classList.contains("icon") ? icon("check") : "Copied");
      setTimeout(() => button.replaceChildren(...before), 1400);
    }
  } catch {
    toast("The browser does not let this page copy");
  }
}

/** Run later, and only the last of several calls. @template {any[]} A @param {number} ms @param {(...args: A) => void} run */
export function debounce(ms, run) {
  /** @type {any} */
  let timer;
  return (/** @type {A} */ ...args) => { clearTimeout(timer); timer = setTimeout(() => run(...args), ms); };
}

/** Fails when the signal does, as `fetch` would. @param {AbortSignal} signal @returns {Promise<never>} */
export const untilAborted = (signal) =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

/** @param {number} n */
export const withCommas = (n) => n.toLocaleString("en");

/** A name for files. @param {string} text */
export const fileName = (text) => text.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat";
