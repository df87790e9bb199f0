// The page: a conversation over the server's public API. What a model writes is shown as text, never as HTML.

import * as api from "./api.js";
import { Recorder } from "./sound.js";

const LARGEST_SIDE = 1024; // pictures are scaled down to it before they are sent
const $ = (id) => document.getElementById(id);
const log = $("log"), text = $("text"), status = $("status");
const settings = $("settings").querySelector("form").elements;
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

let history = []; // messages as the API has them
let attachments = []; // {part, name, url, kind}
let inputs = new Set(["text"]);
let running = null; // AbortController of the reply that comes now

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

function say(words, bad = false) {
  status.textContent = words;
  status.classList.toggle("error", bad);
}

function atEnd() { log.scrollTop = log.scrollHeight; }

// -- attachments ------------------------------------------------------------------------------------------------

async function dataUrl(blob) {
  return await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function scaled(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error(`${file.name}: is no picture that this browser knows`); });
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas", { width: Math.max(1, bitmap.width * scale), height: Math.max(1, bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

async function attach(file) {
  const kind = file.type.startsWith("audio/") ? "audio" : "image";
  if (!inputs.has(kind)) throw new Error(`this model takes no ${kind === "image" ? "pictures" : "sounds"}`);
  const url = kind === "image" ? await scaled(file) : await dataUrl(file);
  const part = kind === "image"
    ? { type: "image_url", image_url: { url } }
    : { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format: "wav" } };
  attachments.push({ part, kind, url, name: file.name || (kind === "image" ? "picture" : "sound") });
  showAttachments();
}

async function attachAll(files) {
  for (const file of files) await attach(file).catch((error) => say(error.message, true));
}

function showAttachments() {
  $("attachments").replaceChildren(...attachments.map((each) => {
    const remove = element("button", { type: "button", textContent: "×", ariaLabel: `Remove ${each.name}` });
    remove.onclick = () => { attachments = attachments.filter((other) => other !== each); showAttachments(); text.focus(); };
    return element("li", {}, each.kind === "image" ? element("img", { src: each.url, alt: each.name }) : each.name, remove);
  }));
}

// -- the conversation -------------------------------------------------------------------------------------------

function addMessage(role, content = "", media = []) {
  $("welcome")?.remove();
  const bubble = element("div", { className: "bubble", textContent: content });
  const shown = media.map((each) => each.kind === "image"
    ? element("img", { src: each.url, alt: each.name })
    : element("audio", { src: each.url, controls: true, ariaLabel: each.name }));
  const article = element("article", { className: role, ariaLabel: role === "user" ? "You" : "Model" }, ...shown, bubble);
  log.append(article);
  atEnd();
  return { article, bubble };
}

function request() {
  const body = { messages: [...history] };
  if (settings.system.value.trim()) body.messages.unshift({ role: "system", content: settings.system.value.trim() });
  for (const name of NUMBERS) if (settings[name].value !== "") body[name] = Number(settings[name].value);
  return body;
}

async function send() {
  const words = text.value.trim();
  if (running || (!words && !attachments.length)) return;
  const parts = attachments.map((each) => each.part);
  history.push({ role: "user", content: parts.length ? [...parts, ...(words ? [{ type: "text", text: words }] : [])] : words });
  addMessage("user", words, attachments);
  text.value = ""; attachments = []; showAttachments(); resize();
  await answer();
}

async function answer() {
  const { article, bubble } = addMessage("assistant");
  const began = performance.now();
  let first = 0, usage = null, reason = null;
  running = new AbortController();
  busy(true);
  say("…");
  try {
    for await (const chunk of api.chat(request(), settings.key.value, running.signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      if (!choice.delta.content) continue;
      first ||= performance.now();
      const stays = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      bubble.append(choice.delta.content);
      if (stays) atEnd();
    }
    if (usage) article.append(element("div", { className: "figures", textContent: figures(usage, began, first, reason) }));
    say("");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else {
      article.append(element("div", { className: "error", textContent: error.message }));
      say("No reply.", true);
    }
  } finally {
    running = null;
    busy(false);
    // What was said stays in the conversation, also when it was stopped; without a reply the question goes too.
    if (bubble.textContent) history.push({ role: "assistant", content: bubble.textContent });
    else history.pop();
    atEnd();
    text.focus();
  }
}

function figures(usage, began, first, reason) {
  const seconds = (performance.now() - (first || began)) / 1000;
  const speed = usage.completion_tokens > 1 ? `${((usage.completion_tokens - 1) / seconds).toFixed(0)} tokens/s · ` : "";
  const cut = reason === "length" ? " · cut off at the longest reply" : "";
  return `${speed}first word after ${Math.round((first || performance.now()) - began)} ms · ${usage.completion_tokens} tokens${cut}`;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  log.ariaBusy = String(is);
}

function newChat() {
  running?.abort();
  history = [];
  log.replaceChildren();
  say("New chat.");
  text.focus();
}

function save() {
  const content = JSON.stringify({ messages: request().messages }, null, 1);
  const url = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  element("a", { href: url, download: "conversation.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// -- the microphone ---------------------------------------------------------------------------------------------

let recorder = null, pressed = 0;

async function startRecording() {
  if (recorder) return;
  running?.abort();
  recorder = new Recorder();
  try {
    await recorder.start();
    $("microphone").ariaPressed = "true";
    say("Listening…");
  } catch (error) {
    recorder = null;
    say(`No microphone: ${error.message}`, true);
  }
}

async function stopRecording() {
  const ended = recorder;
  if (!ended) return;
  recorder = null;
  $("microphone").ariaPressed = "false";
  const { blob, seconds } = await ended.stop();
  if (seconds < 0.2) { say("Too short: hold the button while you speak.", true); return; }
  await attach(new File([blob], "what you said", { type: "audio/wav" }));
  await send();
}

// -- wiring -----------------------------------------------------------------------------------------------------

function resize() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

$("composer").onsubmit = (event) => { event.preventDefault(); send(); };
text.oninput = resize;
text.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
text.onpaste = (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); attachAll(files); }
};
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("composer").classList.toggle("target", over);
    if (name === "drop") attachAll([...event.dataTransfer.files]);
  });
}
$("picture").onclick = () => $("file").click();
$("file").onchange = async () => { await attachAll([...$("file").files]); $("file").value = ""; text.focus(); };
$("stop").onclick = () => running?.abort();
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("new").onclick = newChat;
$("export").onclick = save;
$("settings-open").onclick = () => $("settings").showModal();
$("settings").onclose = () => { sessionStorage.setItem("key", settings.key.value); connect(); };

// A short press begins and the next one ends; a long one records while it is held.
$("microphone").onpointerdown = async () => { pressed = performance.now(); if (recorder) await stopRecording(); else await startRecording(); };
$("microphone").onpointerup = () => { if (performance.now() - pressed > 400) stopRecording(); };
$("microphone").onkeydown = (event) => {
  if ((event.key === " " || event.key === "Enter") && !event.repeat) { event.preventDefault(); recorder ? stopRecording() : startRecording(); }
};

async function connect() {
  try {
    const { id, architecture } = await api.model(settings.key.value);
    $("model").textContent = id;
    inputs = new Set(architecture.input_modalities);
    document.querySelectorAll("[data-needs]").forEach((each) => { each.hidden = !inputs.has(each.dataset.needs); });
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

settings.key.value = sessionStorage.getItem("key") ?? "";
connect();
text.focus();
