// What the microphone heard, addressed by the milliseconds since it was opened.

import { RATE, joined } from "./pcm.js";

const at = (ms) => Math.round((ms * RATE) / 1000);

export class Recording {
  #pieces = [];
  #first = 0; // index of the first sample that is held
  #end = 0;

  push(samples) {
    this.#pieces.push(samples);
    this.#end += samples.length;
  }

  get ms() {
    return (this.#end * 1000) / RATE;
  }

  // The samples between two times, as far as they are held.
  cut(from, to) {
    const held = joined(this.#pieces);
    return held.slice(Math.max(0, at(from) - this.#first), Math.max(0, at(to) - this.#first));
  }

  // What is older is no longer needed.
  forget(before) {
    while (this.#pieces.length && this.#first + this.#pieces[0].length <= at(before)) {
      this.#first += this.#pieces.shift().length;
    }
  }
}
