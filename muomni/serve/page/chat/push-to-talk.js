// Hold to speak: what is said while the button or the key is held becomes a message.

import { byId } from "../dom.js";
import { Microphone } from "../sound/microphone.js";
import { RATE, joined } from "../sound/pcm.js";

const SHORT_PRESS = 400; // ms: a shorter one begins, and the next one ends
const SHORTEST = 0.2; // seconds that can be a message
const LONGEST = 120;
const LISTENING = "Listening… let go or press again to send, Esc to drop.";

export class PushToTalk {
  #button = byId("microphone");
  #microphone = null;
  #pieces = [];
  #pressed = 0;

  // `onBegin()` when somebody begins to speak, `onSaid(samples)` at the end.
  constructor(status, onBegin, onSaid) {
    Object.assign(this, { status, onBegin, onSaid });
    this.#button.onpointerdown = (event) => { if (event.button === 0) this.#press(); };
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      this.#button.addEventListener(name, () => this.#release());
    }
    this.#button.oncontextmenu = (event) => event.preventDefault(); // long presses of a finger
    document.addEventListener("keydown", (event) => this.#key(event, () => this.#press()));
    document.addEventListener("keyup", (event) => this.#key(event, () => this.#release()));
    window.addEventListener("blur", () => this.#release());
  }

  get listening() {
    return this.#microphone !== null;
  }

  cancel() {
    this.#close();
    this.status.set("idle", "");
  }

  // Space on the button, or where nothing else takes it.
  #key(event, act) {
    const free = event.target === this.#button || [document.body, byId("log")].includes(event.target);
    const space = event.key === " " || (event.key === "Enter" && event.target === this.#button);
    if (!space || !free || !this.#button.checkVisibility() || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    if (!event.repeat) act();
  }

  #press() {
    if (this.listening) {
      this.#end();
      this.#pressed = 0;
    } else {
      this.#pressed = performance.now();
      this.#begin();
    }
  }

  #release() {
    if (this.listening && this.#pressed && performance.now() - this.#pressed > SHORT_PRESS) this.#end();
  }

  async #begin() {
    this.onBegin();
    this.#pieces = [];
    const microphone = new Microphone((samples, level) => this.#hear(samples, level));
    this.#microphone = microphone;
    this.#button.ariaPressed = "true";
    try {
      await microphone.open();
      if (this.#microphone === microphone) this.status.set("listening", LISTENING);
    } catch (error) {
      this.#close();
      this.status.set("idle");
      this.status.error(error.message);
    }
  }

  #hear(samples, level) {
    this.#pieces.push(samples);
    this.#button.style.setProperty("--level", Math.min(1, level * 6).toFixed(2));
    if (this.#pieces.length * samples.length > LONGEST * RATE) this.#end();
  }

  #end() {
    this.#close();
    const samples = joined(this.#pieces);
    this.status.set("idle", "");
    if (samples.length < SHORTEST * RATE) this.status.error("Too short: hold the microphone while you speak.");
    else this.onSaid(samples);
  }

  #close() {
    this.#microphone?.close();
    this.#microphone = null;
    this.#button.ariaPressed = "false";
  }
}
