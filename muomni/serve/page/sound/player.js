// Plays sound that comes in pieces on the audio clock, a little behind, so that late pieces leave no gaps.

import { RATE, toFloat } from "./pcm.js";

const LEAD = 0.25; // seconds between a piece that comes first, or late, and its sound

export class Player {
  #context = null;
  #nodes = []; // {node, at, length} in seconds of the audio clock, in order
  #ended = 0; // seconds of the pieces that have been played to their end
  #next = 0; // when the next piece begins
  #open = false; // more pieces may come

  // `onChange()` is called when sound begins and when it has ended.
  constructor(onChange = () => {}) {
    this.onChange = onChange;
  }

  // Browsers let sound begin only after a click or a key: call this in its handler.
  unlock() {
    if (!this.#context) {
      this.#context = new AudioContext({ sampleRate: RATE });
      this.output = this.#context.createGain();
      this.output.connect(this.#context.destination);
    }
    return this.#context.resume();
  }

  get playing() {
    return this.#open || this.#nodes.length > 0;
  }

  // Whether there is sound to be heard, now or in a moment.
  get sounding() {
    return this.#nodes.length > 0;
  }

  // Seconds of the present sound, or of the last, that were heard.
  get played() {
    if (!this.#context) return 0;
    const now = this.#context.currentTime - (this.#context.outputLatency || 0);
    const part = ({ at, length }) => Math.max(0, Math.min(length, now - at));
    return this.#nodes.reduce((sum, piece) => sum + part(piece), this.#ended);
  }

  // A new sound begins; one that plays ends.
  begin() {
    this.stop();
    this.unlock();
    this.#ended = 0;
    this.#next = 0;
    this.#open = true;
    this.onChange();
  }

  push(samples) {
    if (!this.#open || !samples.length) return;
    const buffer = this.#context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(toFloat(samples), 0);
    const node = new AudioBufferSourceNode(this.#context, { buffer });
    node.connect(this.output);
    const now = this.#context.currentTime;
    if (this.#next < now + 0.005) this.#next = now + LEAD;
    const piece = { node, at: this.#next, length: buffer.duration };
    this.#nodes.push(piece);
    node.onended = () => this.#forget(piece);
    node.start(piece.at);
    this.#next += piece.length;
  }

  // No more pieces come.
  finish() {
    if (!this.#open) return;
    this.#open = false;
    if (!this.#nodes.length) this.onChange();
  }

  // Silence at once; gives the seconds that were heard.
  stop() {
    const { played, playing } = this;
    this.#open = false;
    for (const { node } of this.#nodes) {
      node.onended = null;
      node.stop();
      node.disconnect();
    }
    this.#nodes = [];
    this.#ended = played;
    if (playing) this.onChange();
    return played;
  }

  #forget(piece) {
    this.#nodes = this.#nodes.filter((other) => other !== piece);
    this.#ended += piece.length;
    if (!this.playing) this.onChange();
  }
}
