// Runs beside the page's thread: what the microphone hears becomes 16 bit samples at 24 kHz, a piece each 20 ms or so.

import { RATE, level, toInt16 } from "./pcm.js";
import { Resampler } from "./resampler.js";

const PIECE = 0.02; // seconds

class Capture extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, RATE);
  #block = new Float32Array(Math.ceil((sampleRate * PIECE) / 128) * 128);
  #filled = 0;

  process([[channel]]) {
    if (!channel) return true;
    this.#block.set(channel, this.#filled);
    this.#filled += channel.length;
    if (this.#filled < this.#block.length) return true;
    this.#filled = 0;
    const samples = toInt16(this.#resampler.push(this.#block));
    this.port.postMessage({ samples, level: level(samples) }, [samples.buffer]);
    return true;
  }
}

registerProcessor("capture", Capture);
