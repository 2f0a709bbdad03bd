"use strict";

// -- words -------------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const stored = (name, otherwise) => { try { return localStorage.getItem(`dougong.${name}`) ?? otherwise; } catch { return otherwise; } };
const store = (name, value) => { try { localStorage.setItem(`dougong.${name}`, value); } catch { /* private windows */ } };

let language = stored("language", (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en");
let card = { id: "", chat: true };
let talk = []; // {role, content}: what the next request says
let running = null; // the AbortController of the answer under way

const t = (name, values = {}) => Object.entries(values).reduce((text, [key, value]) => text.replace(`{${key}}`, value), WORDS[language][name]);

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) { node.setAttribute("aria-label", t(node.dataset.tLabel)); if (node.tagName === "BUTTON") node.title = t(node.dataset.tLabel); }
  for (const node of document.querySelectorAll("[data-t-title]")) node.title = t(node.dataset.tTitle);
  for (const node of document.querySelectorAll("[data-t-hint]")) node.placeholder = t(node.dataset.tHint);
  $("language").textContent = t("languageName");
  $("text").placeholder = t(card.chat ? "placeholder" : "placeholderText");
  $("greeting").textContent = t(card.chat ? "greeting" : "greetingText");
  $("about").textContent = t("about", { model: card.id || t("model") });
  $("examples").replaceChildren(...t(card.chat ? "examples" : "examplesText").map((example) => {
    const button = make("button", "", example);
    button.type = "button";
    button.onclick = () => ask(example);
    return button;
  }));
  sendButton();
}

function make(tag, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
}

function drawing(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

// -- an answer on the page ---------------------------------------------------------------------------------------------

class Answer {
  constructor(prefix = "") {
    this.node = make("li", "message assistant busy");
    this.node.append(document.querySelector(".brand .mark").cloneNode(true));
    this.node.append(make("span", "hidden", t("model")));
    this.words = make("div", "words");
    this.words.tabIndex = 0;
    this.words.setAttribute("role", "group");
    this.words.setAttribute("aria-label", t("tokenHelp"));
    if (prefix) this.words.append(make("span", "prompt", prefix));
    this.node.append(this.words);
    this.content = "";
    this.count = 0;
    this.started = 0;
    this.decoder = new TextDecoder();
    this.waiting = []; // tokens that end inside a character
    $("messages").append(this.node);
  }

  think(text) {
    if (!this.thought) {
      const details = make("details");
      details.append(make("summary", "", t("thinking")));
      this.thought = make("p", "thought");
      details.append(this.thought);
      this.node.insertBefore(details, this.words);
    }
    this.thought.textContent += text;
  }

  say(text, entries) {
    this.started ||= performance.now();
    this.last = performance.now();
    this.content += text;
    this.count += entries.length;
    const pieces = [];
    for (const entry of entries) {
      this.waiting.push(entry);
      const piece = this.decoder.decode(new Uint8Array(entry.bytes), { stream: true });
      if (piece) { pieces.push([piece, this.waiting]); this.waiting = []; }
    }
    // Where the server held text back, its pieces and the tokens' may differ: then the words come in one.
    const same = pieces.map(([piece]) => piece).join("") === text;
    for (const [piece, own] of same ? pieces : [[text, entries]]) this.words.append(tokenNode(piece, own));
  }

  end(reason, error = "") {
    this.node.classList.remove("busy");
    const summary = this.node.querySelector("summary");
    if (summary) summary.textContent = t("thoughts");
    const foot = make("div", "foot");
    foot.append(button("M15.5 6.5A7 7 0 1 0 17 10M16 2.5v4.5h-4.5", t("retry"), () => retry(this)));
    if (this.content) {
      const copy = button("M7 7h9v10H7zM4 13V3h9", t("copy"), async () => {
        try { await navigator.clipboard.writeText(this.content); } catch { return; }
        copy.lastChild.textContent = t("copied");
      });
      foot.append(copy);
    }
    const seconds = (this.last - this.started) / 1000;
    const facts = [t("tokens", { n: this.count })];
    if (this.count > 4 && seconds > 0) facts.push(t("speed", { n: ((this.count - 1) / seconds).toFixed(seconds && (this.count - 1) / seconds < 10 ? 1 : 0) }));
    if (reason === "length") facts.push(t("length"));
    if (reason === "stopped") facts.push(t("stopped"));
    foot.append(make("span", "facts", facts.join(" · ")));
    if (error) {
      const box = make("div", "error", error);
      box.setAttribute("role", "alert");
      this.node.append(box);
    }
    this.node.append(foot);
    $("status").textContent = error || t("answered");
  }
}

function button(path, text, action) {
  const node = make("button");
  node.type = "button";
  node.append(drawing(path), make("span", "", text));
  node.onclick = action;
  return node;
}

function tokenNode(text, entries) {
  const node = make("span", "token", text);
  node.entries = entries;
  if (entries.length) {
    const share = Math.exp(entries.reduce((sum, entry) => sum + entry.logprob, 0));
    const level = [0.5, 0.2, 0.05, 0.01].filter((limit) => share < limit).length;
    if (level) node.classList.add(`l${level}`);
  }
  return node;
}

// -- what else it might have said --------------------------------------------------------------------------------------

const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
const percent = (logprob) => { const share = 100 * Math.exp(logprob); return share >= 99.95 ? "100%" : share < 0.01 ? "<0.01%" : `${share.toFixed(share < 1 ? 2 : 1)}%`; };

function tip(node) {
  const chosen = document.querySelector(".token.chosen");
  if (chosen) chosen.classList.remove("chosen");
  if (!node || !node.entries.length) { $("tip").hidden = true; return; }
  const rows = [];
  const head = make("header");
  head.append(make("code", "", visible(node.textContent)), make("span", "share", percent(node.entries.reduce((sum, entry) => sum + entry.logprob, 0))));
  rows.push(head);
  const entry = node.entries[node.entries.length - 1];
  for (const other of entry.top_logprobs || []) {
    const row = make("div", other.token === entry.token ? "row taken" : "row");
    const bar = make("span", "bar");
    bar.style.width = `${100 * Math.exp(other.logprob)}%`;
    row.append(bar, make("code", "", visible(other.token)), make("span", "", percent(other.logprob)));
    rows.push(row);
  }
  const box = $("tip");
  box.replaceChildren(...rows);
  box.hidden = false;
  const place = node.getClientRects()[0] || node.getBoundingClientRect();
  const above = place.top - box.offsetHeight - 8;
  box.style.top = `${above > 60 ? above : place.bottom + 8}px`;
  box.style.left = `${Math.min(Math.max(8, place.left + place.width / 2 - box.offsetWidth / 2), innerWidth - box.offsetWidth - 8)}px`;
  node.classList.add("chosen");
}

$("messages").addEventListener("mouseover", (event) => tip(event.target.closest(".token")));
$("messages").addEventListener("mouseleave", () => tip(null));
$("messages").addEventListener("focusout", () => tip(null));
$("messages").addEventListener("click", (event) => { if (event.target.closest(".token")) tip(event.target.closest(".token")); });
addEventListener("scroll", () => tip(null), { passive: true });
$("messages").addEventListener("keydown", (event) => {
  if (!event.target.classList.contains("words") || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Escape") { tip(null); return; }
  const nodes = [...event.target.querySelectorAll(".token")];
  const at = nodes.findIndex((node) => node.classList.contains("chosen"));
  const next = nodes[event.key === "ArrowRight" ? Math.min(at + 1, nodes.length - 1) : Math.max(at - 1, 0)];
  if (!next) return;
  next.scrollIntoView({ block: "nearest" });
  tip(next);
  if (next.entries.length) $("status").textContent = `${visible(next.textContent)} ${percent(next.entries[next.entries.length - 1].logprob)}`;
});

// -- talking -----------------------------------------------------------------------------------------------------------

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function request() {
  const seed = $("seed").value.trim();
  const common = {
    model: card.id, stream: true, temperature: Number($("temperature").value), max_tokens: Number($("max-tokens").value) || 512,
    ...(seed ? { seed: Number(seed) } : {}),
  };
  if (!card.chat) return ["v1/completions", { ...common, prompt: talk.map((turn) => turn.content).join(""), logprobs: 5 }];
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...talk];
  return ["v1/chat/completions", { ...common, messages, logprobs: true, top_logprobs: 5 }];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the stream ended early");
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const data = buffer.slice(0, end).replace(/^data: /, "");
      buffer = buffer.slice(end + 2);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function entriesOf(choice) {
  if (card.chat) return choice.logprobs?.content ?? [];
  const told = choice.logprobs;
  const bytes = (text) => [...new TextEncoder().encode(text)];
  return (told?.tokens ?? []).map((token, at) => ({
    token, bytes: bytes(token), logprob: told.token_logprobs[at],
    top_logprobs: Object.entries(told.top_logprobs[at] || {}).map(([other, logprob]) => ({ token: other, logprob })),
  }));
}

async function answer() {
  const [path, body] = request();
  const shown = new Answer(card.chat ? "" : body.prompt);
  const control = new AbortController();
  running = control;
  sendButton();
  follow(true);
  let reason = "", error = "";
  try {
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: control.signal });
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      error = response.status === 401 ? t("needKey") : told?.error?.message ?? `HTTP ${response.status}`;
      if (response.status === 401) openSettings(true);
    } else {
      for await (const chunk of events(response)) {
        if (chunk.error) { error = t("failed") + chunk.error.message; break; }
        const choice = chunk.choices[0];
        if (!choice) continue;
        const said = card.chat ? choice.delta.content : choice.text;
        if (choice.delta?.reasoning_content) shown.think(choice.delta.reasoning_content);
        if (said) shown.say(said, entriesOf(choice));
        reason = choice.finish_reason || reason;
        follow();
      }
    }
  } catch (fault) {
    if (fault.name === "AbortError") reason = "stopped";
    else error = t("lost");
  }
  running = null;
  shown.end(reason, error);
  shown.turn = talk.length;
  if (shown.content) talk.push({ role: "assistant", content: shown.content });
  sendButton();
  follow();
}

function ask(text) {
  if (running || !text.trim()) return;
  $("welcome").hidden = true;
  talk.push({ role: "user", content: text });
  if (card.chat) {
    const node = make("li", "message user");
    node.append(make("span", "hidden", t("you")), make("div", "words", text));
    $("messages").append(node);
  }
  $("text").value = "";
  grow();
  answer();
}

function retry(shown) {
  if (running) return;
  while (shown.node.nextSibling) shown.node.nextSibling.remove();
  shown.node.remove();
  talk = talk.slice(0, shown.turn);
  answer();
  $("text").focus();
}

// -- the page ----------------------------------------------------------------------------------------------------------

const scroller = document.scrollingElement;
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - innerHeight < 90;
let following = true;

function follow(force = false) {
  following ||= force;
  if (following) scroller.scrollTop = scroller.scrollHeight;
}
addEventListener("scroll", () => {
  following = atEnd();
  $("down").hidden = following;
  document.body.classList.toggle("scrolled", scroller.scrollTop > 4);
}, { passive: true });
$("down").onclick = () => follow(true);

function sendButton() {
  $("form").classList.toggle("going", Boolean(running));
  $("send").setAttribute("aria-label", t(running ? "stop" : "send"));
  $("send").title = t(running ? "stop" : "send");
  $("send").disabled = !running && !$("text").value.trim();
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  sendButton();
}

$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  // Enter also ends the choice of a Chinese character, which sends nothing.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    if (!running) ask($("text").value);
  }
});
addEventListener("keydown", (event) => { if (event.key === "Escape" && running && !$("tip").matches(":not([hidden])")) running.abort(); });
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else ask($("text").value);
});
$("new").onclick = () => {
  if (running) running.abort();
  talk = [];
  $("messages").replaceChildren();
  $("welcome").hidden = false;
  $("text").focus();
};
$("language").onclick = () => { language = language === "zh" ? "en" : "zh"; store("language", language); speak(); };

const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const chosen = stored("theme", "");
  document.documentElement.dataset.theme = chosen || (dark.matches ? "dark" : "light");
}
dark.addEventListener("change", paint);
$("theme").onclick = () => { store("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark"); paint(); };

function heat(on) {
  document.body.classList.toggle("heat", on);
  $("probabilities").setAttribute("aria-pressed", String(on));
  store("heat", on ? "1" : "");
}
$("probabilities").onclick = () => heat(!document.body.classList.contains("heat"));

function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-open").setAttribute("aria-expanded", String(open));
  if (open) scroller.scrollTop = 0;
}
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings-open").onclick = () => openSettings($("settings").hidden);
for (const [name, otherwise] of [["system", ""], ["temperature", "0.8"], ["max-tokens", "512"], ["seed", ""]]) {
  $(name).value = stored(name, otherwise);
  $(name).addEventListener("input", () => { store(name, $(name).value); $("temperature-shown").textContent = $("temperature").value; });
}
$("temperature-shown").textContent = $("temperature").value;
// The key outlives neither the tab nor the window.
try { $("key").value = sessionStorage.getItem("dougong.key") || ""; } catch { /* private windows */ }
$("key").addEventListener("change", () => { try { sessionStorage.setItem("dougong.key", $("key").value); } catch { /* the same */ } meet(); });

async function meet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) { openSettings(true); $("status").textContent = t("needKey"); return; }
    card = (await response.json()).data[0];
    $("model").textContent = card.id;
    $("model").title = card.id;
    const most = Math.max(1, card.max_model_len - 1);
    $("max-tokens").max = most;
    if (Number($("max-tokens").value) > most) $("max-tokens").value = most;
    document.title = `${card.id} · dougong`;
    speak();
  } catch { $("status").textContent = t("lost"); }
}

paint();
heat(Boolean(stored("heat", "")));
speak();
grow();
meet();
