// The page: everything is made here and joined.

import { Server } from "./api.js";
import { Attachments, spoken } from "./chat/attachments.js";
import { Chat } from "./chat/chat.js";
import { Conversation } from "./chat/conversation.js";
import { Messages } from "./chat/messages.js";
import { PushToTalk } from "./chat/push-to-talk.js";
import { byId, save } from "./dom.js";
import { HandsFree } from "./live/hands-free.js";
import { Panel } from "./live/panel.js";
import { Settings } from "./settings.js";
import { Player } from "./sound/player.js";
import { Status } from "./status.js";
import { welcome } from "./welcome.js";

const text = byId("text");
const status = new Status();
const server = new Server();
const conversation = new Conversation();
const attachments = new Attachments();
const settings = new Settings(settingsChanged, connect);
export const player = new Player(() => (live.active ? live : chat).update());
const messages = new Messages({
  edit,
  remove: (turn) => chat.drop(turn),
  retry: (turn) => chat.again(turn),
  listen: (turn) => chat.listen(turn),
});
const shared = { server, conversation, messages, player, settings, status };
const chat = new Chat(shared);
const panel = new Panel({
  onMute: (muted) => { live.gate.muted = muted; },
  onInterrupt: () => live.interrupt(),
  onEnd: () => live.end(),
});
const live = new HandsFree({ ...shared, panel });
const talk = new PushToTalk(status, () => chat.interrupt(), said);

// -- the model ----------------------------------------------------------------------------------------------------

async function connect() {
  server.key = settings.key;
  try {
    const model = await server.model();
    const { input_modalities: inputs, output_modalities: outputs } = model.architecture;
    attachments.inputs = new Set(inputs);
    chat.speech = live.speech = outputs.includes("audio");
    settings.setVoices(chat.speech ? await server.voices() : []);
    const abilities = new Set([...inputs, ...(chat.speech ? ["speech"] : [])]);
    document.body.dataset.can = [...abilities].join(" ");
    welcome(abilities, suggest);
    byId("model").textContent = model.id;
    document.title = `${model.id} · μOmni`;
    status.set("idle", "");
  } catch (error) {
    status.offer(error.message, "Try again", connect);
    if (error.status === 401) settings.askForKey();
  }
}

function suggest(words, kind = "text") {
  text.value = words;
  resize();
  text.focus();
  if (kind === "image") byId("file").click();
}

// -- messages -----------------------------------------------------------------------------------------------------

function send() {
  const words = text.value.trim();
  if (!words && !attachments.media.length) return;
  player.unlock();
  text.value = "";
  resize();
  text.focus();
  chat.send(words, attachments.take());
}

function said(samples) {
  chat.send(text.value.trim(), [...attachments.take(), spoken(samples)]);
  text.value = "";
  resize();
}

function edit(turn) {
  chat.drop(turn);
  suggest(turn.text);
  attachments.set(turn.media);
}

async function attach(files) {
  for (const file of files) await attachments.add(file).catch((error) => status.error(error.message));
  if (live.active) live.show(attachments.take());
}

function clear() {
  live.end();
  talk.cancel();
  chat.interrupt();
  const { turns } = conversation;
  conversation.turns = [];
  messages.clear();
  text.focus();
  if (turns.length) status.offer("New chat.", "Bring the old one back", () => bringBack(turns));
}

function bringBack(turns) {
  if (conversation.turns.length) clear();
  conversation.turns = turns;
  turns.forEach((turn) => messages.add(turn));
  status.set("idle", "");
}

// -- buttons and keys ---------------------------------------------------------------------------------------------

function resize() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

function settingsChanged() {
  live.configure();
  byId("speaks").ariaPressed = String(settings.speaks);
}

byId("composer").onsubmit = (event) => { event.preventDefault(); send(); };
text.oninput = resize;
text.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
document.onpaste = (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); attach(files); }
};
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return; // text is dropped as everywhere
    event.preventDefault();
    byId("composer").classList.toggle("target", over);
    if (name === "drop") attach([...event.dataTransfer.files]);
  });
}
byId("picture").onclick = byId("show").onclick = () => byId("file").click();
byId("file").onchange = async ({ target }) => {
  await attach([...target.files]);
  target.value = "";
  if (!live.active) text.focus();
};
byId("stop").onclick = () => { chat.interrupt(); text.focus(); };
byId("speaks").onclick = () => {
  settings.speaks = !settings.speaks;
  if (!settings.speaks) player.stop();
  settingsChanged();
};
byId("hands-free").onclick = () => {
  talk.cancel();
  chat.interrupt();
  player.unlock();
  live.start();
};
byId("new").onclick = clear;
byId("export-markdown").onclick = () => {
  saveAs("md", "text/markdown", conversation.asMarkdown(server.name, settings.system));
};
byId("export-json").onclick = () => {
  saveAs("json", "application/json", conversation.asJson(server.name, settings.system));
};
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (talk.listening) talk.cancel();
  else if (live.active) live.interrupt();
  else chat.interrupt();
});

function saveAs(ending, type, content) {
  byId("exports").hidePopover();
  save(`conversation.${ending}`, type, content);
}

settingsChanged();
connect();
text.focus();
