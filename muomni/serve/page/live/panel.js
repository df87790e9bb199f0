// What a live conversation shows in the place of the message: what goes on, how loud it is, and its buttons.

import { byId } from "../dom.js";

const WORDS = {
  connecting: "Connecting…",
  listening: "Listening",
  hearing: "Hearing you",
  thinking: "Thinking",
  speaking: "Speaking",
};

export class Panel {
  #panel = byId("live");
  #state = null;

  // `onMute(muted)`, `onInterrupt()`, `onEnd()`: its buttons.
  constructor({ onMute, onInterrupt, onEnd }) {
    const mute = byId("mute");
    mute.onclick = () => {
      mute.ariaPressed = String(mute.ariaPressed !== "true");
      onMute(mute.ariaPressed === "true");
    };
    byId("interrupt").onclick = onInterrupt;
    byId("live-end").onclick = onEnd;
  }

  // `level` of the voice, 0 to 1.
  show(state, level = 0) {
    byId("orb").style.setProperty("--level", Math.min(1, level * 5).toFixed(2));
    if (state === this.#state) return;
    if (this.#panel.hidden) this.#open();
    this.#state = state;
    this.#panel.dataset.state = state;
    byId("live-state").textContent = WORDS[state];
    byId("interrupt").disabled = state !== "speaking" && state !== "thinking";
  }

  close() {
    this.#panel.hidden = true;
    byId("composer").hidden = false;
    this.#state = null;
    byId("hands-free").focus();
  }

  #open() {
    this.#panel.hidden = false;
    byId("composer").hidden = true;
    byId("mute").ariaPressed = "false";
    byId("live-end").focus();
  }
}
