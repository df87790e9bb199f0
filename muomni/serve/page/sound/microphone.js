// The microphone: `onPiece(samples, level)` gets 16 bit samples at 24 kHz while it is open.

const WANTED = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const REASONS = {
  NotAllowedError: "The browser keeps the microphone from this page. Allow it beside the address, then try again.",
  NotFoundError: "No microphone was found. Plug one in, then try again.",
  NotReadableError: "The microphone is in use by another program.",
};
const INSECURE = "Browsers give the microphone to https pages and to http://localhost only: open this page so.";

export class Microphone {
  #stream = null;
  #context = null;
  #closed = false;

  constructor(onPiece) {
    this.onPiece = onPiece;
  }

  async open() {
    if (!navigator.mediaDevices) throw new Error(INSECURE);
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    // The device's rate: contexts of another one take no microphone in some browsers.
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
    if (this.#closed) return this.#release(); // closed while the browser asked for permission
    const capture = new AudioWorkletNode(this.#context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => { if (!this.#closed) this.onPiece(data.samples, data.level); };
    this.#context.createMediaStreamSource(this.#stream).connect(capture);
    await this.#context.resume();
  }

  close() {
    this.#closed = true;
    this.#release();
  }

  #release() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#context && this.#context.state !== "closed") this.#context.close();
  }
}
