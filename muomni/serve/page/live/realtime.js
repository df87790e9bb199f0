// One session of `WS /v1/realtime`: events out and in.

import { ApiError } from "../api.js";

const REFUSED = "The server takes no live conversation now: too many are open, or it offers none. Try again later.";
const KEY = "This key cannot be used for live conversations: browsers send it where no spaces and marks may be.";

export class Realtime {
  #socket = null;
  #error = null; // the last that the server told

  // `onEvent(event)` gets the server's events, `onClose(error)` the end, with an Error unless it was meant.
  constructor(server, onEvent, onClose) {
    Object.assign(this, { server, onEvent, onClose });
  }

  // Resolves once the session is there.
  async open() {
    try {
      await this.#connect();
    } catch (error) {
      this.close();
      await this.server.model(); // says what is wrong with the server or the key, where something is
      throw error;
    }
  }

  #connect() {
    const { key, name } = this.server;
    const address = new URL(`/v1/realtime?model=${encodeURIComponent(name)}`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    return new Promise((resolve, reject) => {
      try {
        // A key cannot be a header here, and must not be in the address.
        this.#socket = new WebSocket(address, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
      } catch {
        throw new Error(KEY);
      }
      this.#socket.onclose = () => reject(new ApiError(REFUSED, 503));
      this.#socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "session.created") {
          this.#socket.onclose = () => this.onClose(this.#error ?? new Error("The connection to the server was lost."));
          resolve();
        }
        if (event.type === "error") this.#error = new Error(event.error.message);
        this.onEvent(event);
      };
    });
  }

  send(type, fields = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  close() {
    if (!this.#socket) return;
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close();
  }
}
