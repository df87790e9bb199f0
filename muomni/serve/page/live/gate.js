// What of the microphone is passed on: while the model speaks its voice may come back through the microphone, and
// browsers do not cancel all of it, so that only what is clearly louder counts as somebody talking.

const LOUD = 0.05; // level, 0 to 1
const HOLD = 400; // ms that the gate stays open after something loud, and closed after the model's last sound

export class Gate {
  muted = false;
  #openUntil = -Infinity;
  #closedUntil = -Infinity;

  // `speaking`: the model does; `interruptible`: whether talking may interrupt it; `now` in ms.
  passes(level, { speaking, interruptible }, now) {
    if (speaking) this.#closedUntil = now + HOLD;
    if (this.muted) return false;
    if (now > this.#closedUntil) return true;
    if (interruptible && level > LOUD) this.#openUntil = now + HOLD;
    return now < this.#openUntil;
  }
}
