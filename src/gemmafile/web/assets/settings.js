// Settings of a conversation: the panel, presets, and the fields of a request that come of them.

import { ask, byId, el, toast } from "./dom.js";
import * as store from "./store.js";

/** @typedef {{system: string, sampling: Record<string, number | boolean>, n_predict: number | null, n_probs: number,
 *   output: "free" | "json" | "gbnf", schema: string, grammar: string, mode: "model" | "template" | "literal",
 *   prompt_template: string, history_template: string, user: string, bot: string, preset: string}} Settings */

/** @type {any} what /page/info told */
let info = null;
/** @type {Settings} */
let now;
/** @type {(settings: Settings) => void} */
let changed = () => {};
/** @type {Record<string, any>} controls by name */
const controls = {};

const BUILT_IN = /** @type {Record<string, Record<string, number>>} */ ({
  Default: {},
  Precise: { temperature: 0.2, top_p: 0.9 },
  Creative: { temperature: 1.1, top_p: 0.98 },
});

/** Settings of a new conversation, before anybody changed them. @returns {Settings} */
export const defaultSettings = () => ({
  system: info.system, sampling: {}, n_predict: null, n_probs: 5, output: "free", schema: "", grammar: "", mode: "model",
  prompt_template: info.templates.prompt, history_template: info.templates.history, user: "", bot: "", preset: "Default",
});

/** What is stored, as far as it is what belongs there (it may come from a file), and defaults for the rest.
 * @param {any} stored @returns {Settings} */
export function completeSettings(stored) {
  /** @type {any} */
  const found = defaultSettings();
  for (const [name, value] of Object.entries(stored ?? {})) {
    if (name === "sampling") found.sampling = knobsOf(value);
    else if (name === "n_predict" ? value === null || Number.isFinite(value) : typeof value === typeof found[name]) found[name] = value;
  }
  return found;
}

/** @param {any} value */
const knobsOf = (value) =>
  Object.fromEntries(Object.entries(value ?? {}).filter(([, one]) => Number.isFinite(one) || typeof one === "boolean"));

/** Fields of a request under llama.cpp's names. @param {Settings} settings */
export function requestFields(settings) {
  const fields = /** @type {Record<string, any>} */ ({ ...settings.sampling });
  const seed = fields.seed ?? defaultOf("seed");
  // A seed of our own, so that it can be told afterwards.
  fields.seed = seed >= 0 ? seed : crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  if (settings.n_predict !== null) fields.n_predict = settings.n_predict;
  if (settings.n_probs > 0 && info.tells_probabilities) fields.n_probs = settings.n_probs;
  if (settings.output === "gbnf" && settings.grammar.trim()) fields.grammar = settings.grammar;
  if (settings.output === "json") {
    try {
      fields.json_schema = JSON.parse(settings.schema.trim() || "{}");
    } catch (error) {
      throw new Error(`The JSON schema is not JSON: ${/** @type {Error} */ (error).message}`);
    }
  }
  return fields;
}

/** @param {string} name */
const defaultOf = (name) => info.sampling.find((/** @type {any} */ one) => one.name === name)?.default;

// --- the panel ---------------------------------------------------------------------------------------------------------

/** Build the panel. @param {any} found of /page/info @param {(settings: Settings) => void} onChange
 * @param {() => void} showPrompt */
export function buildSettings(found, onChange, showPrompt) {
  info = found;
  changed = onChange;
  const groups = (/** @type {string} */ name) => info.sampling.filter((/** @type {any} */ one) => one.group === name).map(knob);
  byId("settings-form").replaceChildren(
    presetRow(),
    field("system", "System prompt", el("textarea", { dir: "auto", rows: 3, placeholder: "What the model should know or be" })),
    ...groups("Main"),
    number("n_predict", "longest answer", "tokens; empty: until it is finished", 1, info.n_predict < 0 ? "no limit" : info.n_predict),
    details("Repetition", ...groups("Repetition")),
    details("More sampling", ...groups("More"),
      number("n_probs", "alternatives", "kept with each token, for the token view; 0: none", 1, 5)),
    outputPart(),
    templatePart(showPrompt),
    el("div", { class: "buttons" }, el("button", {
      type: "button", class: "button", onclick: async () => { await store.setWord("new", now); toast("New chats begin with these settings"); },
    }, "Use for new chats")),
  );
  byId("settings-form").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
}

/** @param {string} title @param {...any} children */
const details = (title, ...children) => el("details", {}, el("summary", {}, title), ...children);

/** @param {string} name @param {string} label @param {any} control */
function field(name, label, control) {
  control.id = `set-${name}`;
  control.addEventListener("input", () => set({ [name]: control.value }));
  controls[name] = control;
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control);
}

/** A control of the sampler. @param {any} one of info.sampling */
function knob(one) {
  const id = `set-${one.name}`;
  let control;
  if (one.kind === "flag" || one.choices.length) {
    const options = one.kind === "flag" ? [["false", "no"], ["true", "yes"]] : one.choices.map((/** @type {any} */ c) => [String(c), String(c)]);
    control = el("select", { id }, el("option", { value: "" }, `${shown(one.default)} (default)`),
      ...options.map((/** @type {string[]} */ [value, text]) => el("option", { value }, text)));
  } else {
    control = el("input", { id, type: "number", step: "any", inputMode: "decimal", placeholder: shown(one.default) });
    if (one.kind === "whole") control.step = "1";
  }
  control.setAttribute("aria-describedby", `${id}-help`);
  control.addEventListener("input", () => {
    const sampling = { ...now.sampling };
    const value = control.value === "" ? null : one.kind === "flag" ? control.value === "true" : Number(control.value);
    if (value === null || value === one.default) delete sampling[one.name];
    else sampling[one.name] = value;
    set({ sampling });
  });
  controls[`sampling.${one.name}`] = control;
  return el("div", { class: "knob" }, el("label", { for: id }, one.label), control,
    el("span", { class: "quiet", id: `${id}-help` }, `${one.help}. Default: ${shown(one.default)}`));
}

/** @param {any} value */
const shown = (value) => (typeof value === "boolean" ? (value ? "yes" : "no") : String(value));

/** @param {string} name @param {string} label @param {string} help @param {number} step @param {any} placeholder */
function number(name, label, help, step, placeholder) {
  const id = `set-${name}`;
  const control = el("input", { id, type: "number", step, min: 0, placeholder: String(placeholder), "aria-describedby": `${id}-help` });
  control.addEventListener("input", () => {
    const empty = name === "n_probs" ? 5 : null;
    set({ [name]: control.value === "" ? empty : Math.max(0, Math.min(name === "n_probs" ? 20 : 1e9, Math.round(Number(control.value)))) });
  });
  controls[name] = control;
  return el("div", { class: "knob" }, el("label", { for: id }, label), control,
    el("span", { class: "quiet", id: `${id}-help` }, `${help}. Default: ${placeholder}`));
}

function outputPart() {
  const kind = el("select", {}, el("option", { value: "free" }, "Free text"), el("option", { value: "json" }, "JSON, by a schema"),
    el("option", { value: "gbnf" }, "By a grammar (GBNF)"));
  const schema = field("schema", "JSON schema; empty: any JSON", el("textarea", { class: "mono", rows: 7, spellcheck: false,
    placeholder: '{"type": "object", "properties": {"name": {"type": "string"}}}' }));
  const grammar = field("grammar", "Grammar", el("textarea", { class: "mono", rows: 7, spellcheck: false,
    placeholder: 'root ::= "yes" | "no"' }));
  const box = details("Form of the answer", field("output", "The answer is", kind), schema, grammar);
  controls.outputParts = { json: schema, gbnf: grammar };
  return box;
}

/** @param {() => void} showPrompt */
function templatePart(showPrompt) {
  const choices = [
    ["model", "The model's own chat template"],
    ["template", "The templates below"],
    ["literal", "The templates below, literally as old pages did: messages can write control tokens"],
  ];
  const radios = choices.map(([value, text]) => el("label", {},
    el("input", { type: "radio", name: "mode", value, onchange: () => set({ mode: /** @type {any} */ (value) }) }), el("span", {}, text)));
  controls.mode = radios.map((label) => label.firstElementChild);
  controls.warnings = el("ul", { class: "warnings", id: "template-warnings" });
  const from = { card: "from the model card in this file", model: "the model's own format", "": "" }[/** @type {string} */ (info.templates.source)];
  const prompt = field("prompt_template", "Prompt template", el("textarea", { class: "mono", rows: 6, spellcheck: false }));
  const history = field("history_template", "Chat history template", el("textarea", { class: "mono", rows: 4, spellcheck: false }));
  for (const name of ["prompt_template", "history_template"]) {
    // Whoever writes a template wants it used.
    controls[name].addEventListener("input", () => { if (now.mode === "model") { set({ mode: "template" }); fill(); } });
  }
  return details("Prompt format",
    el("fieldset", { class: "choices" }, el("legend", { class: "label" }, "Prompts are written by"), ...radios),
    el("div", { role: "status" }, controls.warnings),
    prompt, history,
    el("div", { class: "two" },
      field("user", "User name", el("input", { type: "text" })), field("bot", "Bot name", el("input", { type: "text" }))),
    el("p", { class: "quiet" }, "{{prompt}} is the system prompt, {{history}} the turns, {{name}} and {{message}} of a turn, ",
      `{{char}} the bot's name, {{user}} the user's. ${from ? `Filled in: ${from}.` : ""}`),
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "button", id: "exact-prompt", onclick: showPrompt }, "Show the exact prompt"),
      el("button", { type: "button", class: "button", onclick: () => {
        set({ mode: "model", prompt_template: info.templates.prompt, history_template: info.templates.history, user: "", bot: "" });
        fill();
      } }, "Restore")));
}

/** @param {string[]} warnings of the prompt as it is now */
export function showWarnings(warnings) {
  const texts = JSON.stringify(warnings);
  if (controls.warnings.dataset.shown === texts) return;
  controls.warnings.dataset.shown = texts;
  controls.warnings.replaceChildren(...warnings.map((text) => el("li", {}, text)));
}

/** @param {Partial<Settings>} part */
function set(part) {
  now = { ...now, ...part };
  mark();
  changed(now);
}

/** Show the settings of a conversation. @param {Settings} settings */
export function showSettings(settings) {
  now = settings;
  fill();
}

function fill() {
  for (const name of ["system", "schema", "grammar", "output", "prompt_template", "history_template", "user", "bot"]) {
    controls[name].value = /** @type {any} */ (now)[name];
  }
  controls.n_predict.value = now.n_predict ?? "";
  controls.n_probs.value = now.n_probs === 5 ? "" : now.n_probs;
  for (const one of info.sampling) {
    const value = now.sampling[one.name];
    controls[`sampling.${one.name}`].value = value === undefined ? "" : String(value);
  }
  for (const radio of controls.mode) radio.checked = radio.value === now.mode;
  controls.preset.value = now.preset;
  mark();
}

/** Mark what is not as it is by default, and show the fields that matter. */
function mark() {
  for (const one of info.sampling) {
    controls[`sampling.${one.name}`].parentElement.classList.toggle("changed", one.name in now.sampling);
  }
  for (const [kind, part] of Object.entries(controls.outputParts)) part.hidden = now.output !== kind;
  const names = now.mode === "literal" ? { user: "User", bot: "Llama" } : info.templates;
  controls.user.placeholder = names.user;
  controls.bot.placeholder = names.bot;
}

// --- presets -----------------------------------------------------------------------------------------------------------

function presetRow() {
  const choice = el("select", { id: "set-preset", onchange: () => choosePreset(choice.value) });
  controls.preset = choice;
  listPresets();
  return el("div", { class: "field" }, el("label", { for: "set-preset" }, "Preset"), choice,
    el("div", { class: "buttons preset-buttons" },
      el("button", { type: "button", class: "button", onclick: savePreset }, "Save as…"),
      el("button", { type: "button", class: "button", onclick: deletePreset }, "Delete")));
}

async function listPresets() {
  const own = (await store.all("presets")).map((preset) => preset.name).sort();
  controls.preset.replaceChildren(...[...Object.keys(BUILT_IN), ...own].map((name) => el("option", { value: name }, name)));
  if (now) controls.preset.value = now.preset;
}

/** @param {string} name */
async function choosePreset(name) {
  const settings = BUILT_IN[name] ? { ...now, sampling: BUILT_IN[name] } : completeSettings((await store.one("presets", name))?.settings);
  set({ ...settings, preset: name });
  fill();
}

async function savePreset() {
  const name = (await ask("Save the settings", "Name of the preset", BUILT_IN[now.preset] ? "" : now.preset))?.trim();
  if (!name) return;
  if (BUILT_IN[name]) { toast(`“${name}” is built in: take another name`); return; }
  await store.put("presets", { name, settings: { ...now, preset: name } });
  set({ preset: name });
  await listPresets();
  toast(`Saved as “${name}”`);
}

async function deletePreset() {
  const name = now.preset;
  if (BUILT_IN[name]) { toast(`“${name}” is built in`); return; }
  await store.remove("presets", name);
  set({ preset: "Default" });
  await listPresets();
  toast(`“${name}” is gone`);
}
