// How fast a reply came.

export class Stopwatch {
  #began = performance.now();
  #text = 0;
  #last = 0;
  #sound = 0;

  text() {
    this.#last = performance.now();
    this.#text ||= this.#last;
  }

  sound() {
    this.#sound ||= performance.now();
  }

  // In words; `reason` is that of the end, where it is known.
  told(tokens, reason) {
    const parts = [];
    const since = (time) => `${Math.round(time - this.#began)} ms`;
    // A short reply may come in one piece: then its speed is that from the beginning.
    const seconds = (this.#last - (this.#last > this.#text ? this.#text : this.#began)) / 1000;
    if (tokens > 1 && this.#text) parts.push(`${((tokens - 1) / seconds).toFixed(0)} tokens/s`);
    if (this.#text) parts.push(`first word ${since(this.#text)}`);
    if (this.#sound) parts.push(`first sound ${since(this.#sound)}`);
    parts.push(`${tokens} tokens`);
    if (reason === "length") parts.push("cut off at the longest reply");
    if (reason === "stopped") parts.push("stopped");
    return parts.join(" · ");
  }
}
