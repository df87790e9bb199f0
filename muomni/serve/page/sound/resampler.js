// Changes the sample rate of sound that comes in pieces: a windowed sinc with one row of taps for each phase.
// Pieces of any length give the same samples as the whole at once.

const ZERO_CROSSINGS = 16; // of the sinc, on each side: more is sharper and slower
const PASS_BAND = 0.92; // of the lower rate's half; what lies above is damped

const divisor = (a, b) => (b ? divisor(b, a % b) : a);

export class Resampler {
  #up; #down; #half; #rows;
  #held; // input that may still be needed
  #first; // index of the first held input sample; those before the sound are zeros
  #next = 0; // index of the next output sample

  constructor(from, to) {
    const common = divisor(from, to);
    this.#up = to / common;
    this.#down = from / common;
    const cutoff = Math.min(1, to / from) * PASS_BAND;
    this.#half = Math.ceil(ZERO_CROSSINGS / cutoff);
    this.#rows = Array.from({ length: this.#up }, (_, phase) => row(phase / this.#up, cutoff, this.#half));
    this.#held = new Float32Array(this.#half);
    this.#first = -this.#half;
  }

  // The output that is complete after this input.
  push(input) {
    const held = new Float32Array(this.#held.length + input.length);
    held.set(this.#held);
    held.set(input, this.#held.length);
    const output = [];
    for (;;) {
      const start = Math.floor((this.#next * this.#down) / this.#up) - this.#half + 1 - this.#first;
      if (start + 2 * this.#half > held.length) break;
      const taps = this.#rows[(this.#next * this.#down) % this.#up];
      let sum = 0;
      for (let i = 0; i < taps.length; i += 1) sum += taps[i] * held[start + i];
      output.push(sum);
      this.#next += 1;
    }
    const needed = Math.floor((this.#next * this.#down) / this.#up) - this.#half + 1;
    const drop = Math.max(0, Math.min(held.length, needed - this.#first));
    this.#held = held.slice(drop);
    this.#first += drop;
    return Float32Array.from(output);
  }

  // The rest, at the end of the sound.
  flush() {
    return this.push(new Float32Array(this.#half));
  }
}

function row(fraction, cutoff, half) {
  const taps = Float32Array.from({ length: 2 * half }, (_, i) => {
    const x = i - half + 1 - fraction;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
    return sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / (half + 1)));
  });
  const sum = taps.reduce((all, tap) => all + tap, 0);
  return taps.map((tap) => tap / sum);
}
