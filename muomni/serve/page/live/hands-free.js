// A live conversation: the server hears when somebody speaks, answers, and is interrupted by talking.

import { spoken } from "../chat/attachments.js";
import { Turn } from "../chat/conversation.js";
import { Stopwatch } from "../chat/figures.js";
import { Sentences } from "../chat/sentences.js";
import { Microphone } from "../sound/microphone.js";
import { fromBase64, joined, toBase64 } from "../sound/pcm.js";
import { Recording } from "../sound/recording.js";
import { Gate } from "./gate.js";
import { items, message } from "./history.js";
import { Realtime } from "./realtime.js";
import { wanted } from "./wanted.js";

const PIECES = 2; // of the microphone in one event: about 40 ms
const KEPT = 5000; // ms of what was heard that are kept while nobody speaks

export class HandsFree {
  active = false;
  speech = false; // whether the model speaks
  gate = new Gate();
  #session = null;
  #microphone = null;
  #pieces = [];
  #recording = new Recording();
  #spokenFrom = null; // ms at which somebody began to speak
  #turn = null; // the last one
  #shown = null; // a turn that has media, and waits for what is said about them
  #watch = null;
  #answering = false; // from the end of what was said to the end of the response
  #said = new Map(); // item_id → {turn, said}
  #replies = new Map(); // item_id → {turn, watch, sentences, dropped}
  #playing = null; // item_id of the sound

  // `panel` shows what goes on: {show(state, level), close()}.
  constructor({ server, conversation, messages, player, settings, status, panel }) {
    Object.assign(this, { server, conversation, messages, player, settings, status, panel });
  }

  async start() {
    this.active = true;
    this.#reset();
    this.status.set("connecting", "");
    this.panel.show("connecting");
    const session = new Realtime(this.server, (event) => this.#on(event), (error) => this.end(error));
    const microphone = new Microphone((samples, level) => this.#hear(samples, level));
    [this.#session, this.#microphone] = [session, microphone];
    try {
      await session.open();
      this.configure();
      for (const item of await items(this.conversation)) session.send("conversation.item.create", { item });
      if (this.#session === session) await microphone.open();
      if (this.#session === session) this.update();
    } catch (error) {
      if (this.#session === session) this.end(error);
    }
  }

  // Tells the server the settings.
  configure() {
    if (this.active) this.#session.send("session.update", { session: wanted(this.settings, this.speech) });
  }

  // `error` where it was not meant.
  end(error = null) {
    if (!this.active) return;
    this.active = false;
    this.#session.close();
    this.#microphone.close();
    this.#session = null;
    this.player.stop();
    if (this.#answering) this.#done({ turn: this.#turn, watch: this.#watch }, 0, "stopped");
    this.panel.close();
    this.status.set("idle", "");
    if (error) this.status.error(error.message);
    if (error?.status === 401) this.settings.askForKey();
  }

  // Shows the model pictures, and gives it sounds; what is said next is about them.
  async show(media) {
    if (!media.length) return;
    this.#session.send("conversation.item.create", { item: await message({ media, text: "" }) });
    if (this.#shown) {
      this.#shown.media.push(...media);
      this.messages.refresh(this.#shown);
    } else {
      this.#shown = this.#add(new Turn("", media));
    }
  }

  // Ends what the model says now.
  interrupt() {
    this.#silence();
    if (this.#answering) this.#session.send("response.cancel");
  }

  update(level = 0) {
    if (!this.active || !this.#session) return;
    this.status.set(this.#state);
    this.panel.show(this.#state, level);
  }

  get #state() {
    if (this.player.sounding) return "speaking";
    if (this.#spokenFrom !== null) return "hearing";
    return this.#answering ? "thinking" : "listening";
  }

  #reset() {
    this.#pieces = [];
    this.#recording = new Recording();
    this.#spokenFrom = this.#turn = this.#shown = this.#playing = null;
    this.#answering = false;
    this.#replies.clear();
    this.#said.clear();
    this.gate = new Gate();
  }

  #hear(samples, level) {
    const { interruptible } = this.settings;
    const speaking = this.player.sounding || (this.#answering && !interruptible);
    const passes = this.gate.passes(level, { speaking, interruptible }, performance.now());
    this.#pieces.push(passes ? samples : new Int16Array(samples.length));
    if (this.#pieces.length < PIECES) return;
    const piece = joined(this.#pieces.splice(0));
    this.#recording.push(piece);
    if (this.#spokenFrom === null) this.#recording.forget(this.#recording.ms - KEPT);
    this.#session?.send("input_audio_buffer.append", { audio: toBase64(piece) });
    this.update(passes ? level : 0);
  }

  #on(event) {
    const handlers = {
      "input_audio_buffer.speech_started": this.#speechStarted,
      "input_audio_buffer.speech_stopped": this.#speechStopped,
      "response.output_item.added": this.#added,
      "response.output_text.delta": this.#written,
      "response.output_audio_transcript.delta": this.#written,
      "response.output_audio.delta": this.#spoken,
      "response.done": this.#responseDone,
      "conversation.item.truncated": ({ item_id }) => this.#session.send("conversation.item.retrieve", { item_id }),
      "conversation.item.retrieved": this.#retrieved,
      "conversation.item.input_audio_transcription.completed": this.#writtenDown,
      error: ({ error }) => this.status.error(error.message),
    };
    if (this.active) handlers[event.type]?.call(this, event);
  }

  #speechStarted({ audio_start_ms }) {
    this.#silence();
    this.#spokenFrom = audio_start_ms;
    this.status.set("hearing", "");
    this.update();
  }

  // Falls silent, and tells the server how much was heard. What still comes of this reply is dropped.
  #silence() {
    const wasPlaying = this.player.playing;
    const audio_end_ms = Math.floor(this.player.stop() * 1000);
    if (!wasPlaying || this.#playing === null) return;
    this.#session.send("conversation.item.truncate", { item_id: this.#playing, content_index: 0, audio_end_ms });
    this.#replies.get(this.#playing).dropped = true;
    this.#playing = null;
  }

  #speechStopped({ audio_end_ms, item_id }) {
    const said = spoken(this.#recording.cut(this.#spokenFrom ?? 0, audio_end_ms));
    this.#spokenFrom = null;
    this.#answering = true;
    const turn = this.#shown ?? this.#add(new Turn(""));
    this.#shown = null;
    this.#turn = turn;
    this.#watch = new Stopwatch();
    this.#said.set(item_id, { turn, said });
    turn.media.push(said);
    this.messages.setWaiting(turn, true);
    this.update();
  }

  #add(turn) {
    this.conversation.turns.push(turn);
    this.messages.add(turn);
    return turn;
  }

  #added({ item }) {
    const reply = { turn: this.#turn, watch: this.#watch, sentences: new Sentences(), dropped: false };
    this.#replies.set(item.id, reply);
  }

  #written({ item_id, delta }) {
    const { turn, watch, sentences } = this.#replies.get(item_id);
    watch.text();
    turn.reply.text += delta;
    this.messages.append(turn, delta);
    if (!this.speech) this.status.announce(sentences.push(delta));
  }

  #spoken({ item_id, delta }) {
    const { turn, watch, dropped } = this.#replies.get(item_id);
    if (dropped) return;
    if (this.#playing !== item_id) {
      this.player.begin();
      this.#playing = item_id;
    }
    watch.sound();
    const piece = fromBase64(delta);
    turn.reply.sound.push(piece);
    this.player.push(piece);
    this.update();
  }

  #responseDone({ response }) {
    const item = response.output[0]?.id;
    const reply = this.#replies.get(item) ?? { turn: this.#turn, watch: this.#watch };
    if (item && item === this.#playing) this.player.finish();
    const { error, reason } = response.status_details ?? {};
    if (error) reply.turn.reply.error = error.message;
    if (!this.speech) this.status.announce(reply.sentences?.rest());
    const ends = { cancelled: "stopped", incomplete: reason === "max_output_tokens" ? "length" : reason };
    this.#done(reply, response.usage?.output_token_details?.text_tokens ?? 0, ends[response.status]);
  }

  #done({ turn, watch }, tokens, reason) {
    if (turn === this.#turn) this.#answering = false;
    turn.reply.figures = watch.told(tokens, reason);
    this.messages.setWaiting(turn, false);
    this.update();
  }

  #writtenDown({ item_id, transcript }) {
    const { turn, said } = this.#said.get(item_id);
    said.heard = transcript;
    this.messages.refresh(turn);
  }

  // What the server keeps of a reply that was interrupted: the words that were heard.
  #retrieved({ item }) {
    const { turn } = this.#replies.get(item.id) ?? {};
    const heard = item.content?.[0]?.transcript;
    if (!turn || typeof heard !== "string") return;
    turn.reply.heard = heard;
    this.messages.refresh(turn);
  }
}
