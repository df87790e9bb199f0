// The server's public API as the page uses it.

import { EventParser } from "./sse.js";

const UNREACHABLE = "The server cannot be reached. Is it still running?";
const CUT_OFF = "The connection ended before the reply did.";
const NO_KEY = "This server needs a key, and has not got a right one: enter it in the settings.";
const HINTS = { context_length_exceeded: ". Begin a new chat, or delete the last turns." };

export class ApiError extends Error {
  // `status` of HTTP, 0 without an answer; `retryAfter` in seconds, or null.
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Server {
  key = "";
  name = ""; // of the model

  async model() {
    const [model] = (await this.#json("/v1/models")).data;
    this.name = model.id;
    return model;
  }

  async voices() {
    return (await this.#json("/v1/audio/voices")).voices;
  }

  // The chunks of a reply as they come.
  async *chat(body, signal) {
    const options = { stream: true, stream_options: { include_usage: true } };
    const response = await this.#post("/v1/chat/completions", { ...body, ...options }, signal);
    const events = new EventParser();
    for await (const text of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
      for (const data of events.push(text)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, 500);
        yield chunk;
      }
    }
    throw new ApiError(CUT_OFF);
  }

  // A text as speech: bytes of 16 bit samples at 24 kHz as they come.
  async *speech(input, voice, signal) {
    const body = { input, response_format: "pcm", ...(voice ? { voice } : {}) };
    const response = await this.#post("/v1/audio/speech", body, signal);
    yield* pieces(response.body);
  }

  // What is said in a sound.
  async transcript(sound, signal) {
    const body = new FormData();
    body.append("file", sound, "sound.wav");
    body.append("model", this.name);
    return (await (await this.#fetch("/v1/audio/transcriptions", { method: "POST", body, signal })).json()).text;
  }

  #post(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  async #json(path) {
    return await (await this.#fetch(path)).json();
  }

  async #fetch(path, { headers = {}, ...options } = {}) {
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { headers, ...options }).catch(unreachable);
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    const retryAfter = Number(response.headers.get("Retry-After")) || null;
    if (response.status === 401) throw new ApiError(NO_KEY, 401);
    const hint = HINTS[body?.error?.code] ?? "";
    const message = body?.error?.message ?? `The server answered ${response.status}.`;
    throw new ApiError(`${message}${hint}`, response.status, retryAfter);
  }
}

async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => unreachable(error, CUT_OFF));
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading ends the request; a stream that broke has ended
  }
}

function unreachable(error, message = UNREACHABLE) {
  throw error.name === "AbortError" ? error : new ApiError(message);
}
