// What goes on, in one line above the message, and for screen readers.

import { byId, element } from "./dom.js";

export class Status {
  #line = byId("status");
  #announcer = byId("announcer");

  // `state`: idle, thinking, writing, speaking, listening, and those of a live conversation. Without words the line
  // stays.
  set(state, words = null) {
    document.body.dataset.state = state;
    if (words !== null) this.#show(words);
  }

  error(words) {
    this.#show(words);
    this.#line.classList.add("error");
  }

  // Words with a button.
  offer(words, label, onclick) {
    this.#show(words);
    this.#line.append(" ", element("button", { type: "button", className: "link", textContent: label, onclick }));
  }

  announce(words) {
    if (words) this.#announcer.append(element("p", { textContent: words }));
    while (this.#announcer.childElementCount > 20) this.#announcer.firstChild.remove();
  }

  #show(words) {
    this.#line.classList.remove("error");
    if (this.#line.textContent !== words) this.#line.textContent = words; // what is the same is not told again
  }
}
