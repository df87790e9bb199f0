// The conversation as it is shown. What a model writes becomes text, never markup.

import { byId, element, icon, iconButton } from "../dom.js";

const NEAR_END = 80; // pixels: whoever reads further up is not pulled down

// `actions`: {edit, remove, retry, listen}, each called with a turn.
export class Messages {
  #log = byId("log");
  #down = byId("to-end");
  #shown = new Map(); // turn → what shows it

  constructor(actions) {
    this.actions = actions;
    this.#log.addEventListener("scroll", () => this.#showDown(), { passive: true });
    this.#down.onclick = () => this.toEnd();
  }

  add(turn) {
    this.#log.dataset.empty = "false";
    const shown = this.#make(turn);
    this.#shown.set(turn, shown);
    this.#log.append(shown.section);
    this.refresh(turn);
    this.toEnd();
  }

  remove(turn) {
    this.#shown.get(turn)?.section.remove();
    this.#shown.delete(turn);
    this.#log.dataset.empty = String(this.#shown.size === 0);
  }

  clear() {
    for (const turn of [...this.#shown.keys()]) this.remove(turn);
  }

  // More of a reply's text.
  append(turn, text) {
    const { text: node } = this.#shown.get(turn);
    this.#keepingEnd(() => node.appendData(text));
  }

  // Everything of a turn but the text that grows.
  refresh(turn) {
    const { reply } = turn;
    const shown = this.#shown.get(turn);
    if (!shown) return;
    this.#keepingEnd(() => {
      shown.media.replaceChildren(...turn.media.map(medium));
      shown.said.textContent = turn.text;
      shown.said.hidden = !turn.text;
      const heard = reply.heard ?? reply.text;
      shown.text.data = heard;
      shown.unheard.textContent = reply.text.slice(heard.length);
      shown.text.after(...(shown.unheard.textContent ? [shown.unheard] : []));
      shown.error.textContent = reply.error ?? "";
      shown.figures.textContent = reply.figures ?? "";
      shown.foot.hidden = shown.waiting;
      shown.forWords.forEach((button) => { button.hidden = !reply.text; });
    });
  }

  // While a reply comes: dots before its first word, and no buttons.
  setWaiting(turn, waiting) {
    const shown = this.#shown.get(turn);
    if (!shown) return;
    shown.waiting = waiting;
    shown.article.classList.toggle("waiting", waiting);
    this.refresh(turn);
  }

  toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #keepingEnd(change) {
    const stays = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < NEAR_END;
    change();
    if (stays) this.toEnd();
    this.#showDown();
  }

  #showDown() {
    this.#down.hidden = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < NEAR_END;
  }

  #make(turn) {
    const { edit, remove, retry, listen } = this.actions;
    const media = element("div", { className: "media" });
    const said = element("div", { className: "bubble" });
    const changes = element("div", { className: "actions last-only" },
      iconButton("edit", "Edit this message", () => edit(turn)),
      iconButton("trash", "Delete this turn", () => remove(turn)));
    const user = element("article", { className: "user", ariaLabel: "You" }, media, said, changes);

    const text = document.createTextNode("");
    const unheard = element("span", { className: "unheard", title: "Not heard: you spoke" });
    const bubble = element("div", { className: "bubble" }, text);
    const error = element("p", { className: "error", role: "alert" });
    const figures = element("span", { className: "figures" });
    const again = iconButton("retry", "Answer again", () => retry(turn));
    again.classList.add("last-only");
    const hear = iconButton("speaker", "Listen", () => listen(turn));
    hear.dataset.needs = "speech";
    const actions = element("div", { className: "actions" }, hear, again);
    // Browsers give the clipboard to https and localhost only.
    const copies = iconButton("copy", "Copy", (event) => copy(turn, event.currentTarget));
    if (navigator.clipboard) actions.prepend(copies);
    const foot = element("footer", {}, actions, figures);
    const article = element("article", { className: "assistant", ariaLabel: "Reply" }, bubble, error, foot);
    const section = element("section", { className: "turn" }, user, article);
    const forWords = [copies, hear];
    return { section, media, said, article, text, unheard, error, figures, foot, forWords, waiting: false };
  }
}

function medium({ kind, url, name, heard }) {
  if (kind === "image") return element("img", { src: url, alt: name });
  const audio = element("audio", { src: url, controls: true, ariaLabel: name });
  return heard ? element("figure", {}, audio, element("figcaption", { textContent: `“${heard}”` })) : audio;
}

async function copy(turn, button) {
  await navigator.clipboard.writeText(turn.answer.content);
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}
