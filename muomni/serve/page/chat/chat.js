// Messages and their replies over `/v1/chat/completions`, written and spoken.

import { ApiError } from "../api.js";
import { byId } from "../dom.js";
import { fromBase64 } from "../sound/pcm.js";
import { Reply, Turn } from "./conversation.js";
import { Stopwatch } from "./figures.js";
import { Sentences } from "./sentences.js";

const TRIES = 4; // of a request that finds no place on the server

export class Chat {
  #running = null; // AbortController of what comes now
  #writing = false; // whether it has begun to come
  speech = false; // whether the model speaks

  constructor({ server, conversation, messages, player, settings, status }) {
    Object.assign(this, { server, conversation, messages, player, settings, status });
  }

  get busy() {
    return this.#running !== null || this.player.playing;
  }

  async send(text, media) {
    this.interrupt();
    const turn = new Turn(text, media);
    this.conversation.turns.push(turn);
    this.messages.add(turn);
    await this.#answer(turn);
  }

  async again(turn) {
    this.interrupt();
    turn.reply = new Reply();
    await this.#answer(turn);
  }

  drop(turn) {
    this.interrupt();
    this.conversation.turns = this.conversation.turns.filter((other) => other !== turn);
    this.messages.remove(turn);
  }

  // Ends the reply and its sound; what is there stays.
  interrupt() {
    this.#running?.abort();
    this.#ended();
    this.player.stop();
    this.update();
  }

  // Plays a reply, or makes its sound first.
  async listen({ reply }) {
    this.interrupt();
    await this.#run(async (signal) => {
      this.player.begin();
      if (reply.sound.length) reply.sound.forEach((piece) => this.player.push(piece));
      else for await (const piece of wholeSamples(this.server.speech(reply.text, this.settings.voice, signal))) {
        this.player.push(piece);
      }
    }, (error) => {
      this.#failed(error);
      this.status.error(error.message);
    });
  }

  // Shows what goes on.
  update(words = "") {
    const busy = this.busy;
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    if (this.player.sounding) this.status.set("speaking", "Speaking…");
    else if (this.#writing) this.status.set("writing", "Writing…");
    else if (this.#running) this.status.set("thinking", words || "Thinking…");
    else this.status.set("idle", words);
  }

  async #answer(turn) {
    const { reply } = turn;
    this.messages.setWaiting(turn, true);
    await this.#run(async (signal) => {
      if (this.#speaks) this.player.begin();
      await this.#read(turn, signal);
      if (this.settings.captions) await this.#writeDown(turn, signal);
    }, (error) => {
      reply.error = error.message;
      this.#failed(error);
    });
    if (!reply.figures && !reply.error) reply.figures = "stopped";
    if (turn.reply === reply) this.messages.setWaiting(turn, false);
  }

  get #speaks() {
    return this.speech && this.settings.speaks;
  }

  async #run(work, onError) {
    const running = new AbortController();
    this.#running = running;
    this.update();
    try {
      await work(running.signal);
    } catch (error) {
      if (error.name !== "AbortError") onError(error);
    } finally {
      // Another may have begun since.
      if (this.#running === running) {
        this.#ended();
        this.player.finish();
        this.update();
      }
    }
  }

  #ended() {
    this.#running = null;
    this.#writing = false;
  }

  #failed(error) {
    this.interrupt();
    if (error.status === 401) this.settings.askForKey();
  }

  async #read(turn, signal) {
    const { reply } = turn;
    const sentences = new Sentences();
    const watch = new Stopwatch();
    let usage = null, reason = null;
    for await (const chunk of this.#chunks(this.#body(turn), signal)) {
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices;
      reason = choice?.finish_reason ?? reason;
      const { content, audio } = choice?.delta ?? {};
      const text = content ?? audio?.transcript;
      if (text) {
        watch.text();
        if (!this.#writing) this.#begun();
        reply.text += text;
        this.messages.append(turn, text);
        if (!this.#speaks) this.status.announce(sentences.push(text)); // two voices at once help nobody
      }
      if (audio?.data) {
        watch.sound();
        const piece = fromBase64(audio.data);
        reply.sound.push(piece);
        this.player.push(piece);
        this.update();
      }
    }
    this.status.announce(sentences.rest());
    reply.figures = watch.told(usage?.completion_tokens ?? 0, reason);
    if (!reply.text) reply.error = "The model gave no words.";
  }

  async #writeDown(turn, signal) {
    for (const each of turn.media.filter((medium) => medium.kind === "audio" && !medium.heard)) {
      each.heard = await this.server.transcript(each.blob, signal);
      this.messages.refresh(turn);
    }
  }

  #begun() {
    this.#writing = true;
    this.update();
  }

  #body(turn) {
    const { sampling, system, voice } = this.settings;
    const body = { ...sampling, messages: this.conversation.messages(system, turn) };
    if (!this.#speaks) return body;
    return { ...body, modalities: ["text", "audio"], audio: { format: "pcm16", ...(voice ? { voice } : {}) } };
  }

  // A server without a free place says when to come back.
  async *#chunks(body, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return yield* this.server.chat(body, signal);
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 503 || tries === TRIES) throw error;
        const seconds = (error.retryAfter ?? 1) * tries;
        this.update(`The server is busy. Trying again in ${seconds} s…`);
        await pause(seconds * 1000, signal);
        this.update();
      }
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

// Samples from bytes that may be cut inside one.
async function* wholeSamples(stream) {
  let held = new Uint8Array(0);
  for await (const bytes of stream) {
    const all = new Uint8Array(held.length + bytes.length);
    all.set(held);
    all.set(bytes, held.length);
    const whole = all.length & ~1;
    held = all.slice(whole);
    if (whole) yield new Int16Array(all.slice(0, whole).buffer);
  }
}
