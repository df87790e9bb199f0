// Server-sent events from text that comes in pieces, cut anywhere.

export class EventParser {
  #line = "";
  #data = [];

  // The data of the events that are complete.
  push(text) {
    const lines = (this.#line + text).split(/\r\n|\n|\r(?!$)/);
    this.#line = lines.pop();
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line) {
    if (line === "") {
      const event = this.#data.length ? [this.#data.join("\n")] : [];
      this.#data = [];
      return event;
    }
    const [, name, value] = line.match(/^([^:]*):? ?(.*)$/s);
    if (name === "data") this.#data.push(value);
    return [];
  }
}
