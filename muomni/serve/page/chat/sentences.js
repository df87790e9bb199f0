// Text that comes in pieces, told in whole sentences: screen readers stumble over words that grow.

const END = /(?:[.!?…]["'”’)\]]*\s+|[。！？]|\n)/g;

export class Sentences {
  #held = "";

  // The sentences that are complete, or "".
  push(text) {
    this.#held += text;
    const ends = [...this.#held.matchAll(END)];
    if (!ends.length) return "";
    const cut = ends.at(-1).index + ends.at(-1)[0].length;
    const complete = this.#held.slice(0, cut);
    this.#held = this.#held.slice(cut);
    return complete.trim();
  }

  rest() {
    const rest = this.#held.trim();
    this.#held = "";
    return rest;
  }
}
