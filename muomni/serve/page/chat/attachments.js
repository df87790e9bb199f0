// Pictures and sounds that go with the next message.

import { byId, element, icon } from "../dom.js";
import { RATE, toBase64, wav } from "../sound/pcm.js";

const LARGEST_SIDE = 1024; // pictures are scaled down to it before they are sent
const NAMES = { image: "pictures", audio: "sounds" };

export class Attachments {
  #list = byId("attachments");
  media = [];
  inputs = new Set(); // what the model takes

  // Raises an Error that says what is wrong with a file.
  async add(file) {
    const kind = file.type.startsWith("audio/") ? "audio" : "image";
    if (!this.inputs.has(kind)) throw new Error(`This model takes no ${NAMES[kind]}.`);
    this.media.push(kind === "image" ? await picture(file) : await sound(file));
    this.#show();
  }

  set(media) {
    this.media = [...media];
    this.#show();
  }

  take() {
    const media = this.media;
    this.set([]);
    return media;
  }

  #show() {
    this.#list.replaceChildren(...this.media.map((each) => this.#item(each)));
  }

  #item(each) {
    const shown = each.kind === "image"
      ? element("img", { src: each.url, alt: each.name })
      : element("span", {}, icon("mic"), each.name);
    const onclick = () => {
      this.set(this.media.filter((other) => other !== each));
      byId("text").focus();
    };
    const remove = element("button", { type: "button", ariaLabel: `Remove ${each.name}`, onclick }, icon("close"));
    return element("li", {}, shown, remove);
  }
}

// What the microphone heard: 16 bit samples.
export function spoken(samples) {
  const bytes = wav(samples);
  const name = `spoken message, ${(samples.length / RATE).toFixed(1)} s`;
  return medium(new Blob([bytes], { type: "audio/wav" }), toBase64(bytes), "wav", name);
}

async function sound(file) {
  const data = (await dataUrl(file)).split(",")[1];
  return medium(file, data, file.type.includes("mpeg") ? "mp3" : "wav", file.name || "sound");
}

function medium(blob, data, format, name) {
  const part = { type: "input_audio", input_audio: { data, format } };
  return { kind: "audio", part, url: URL.createObjectURL(blob), name, blob };
}

async function picture(file) {
  const name = file.name || "picture";
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${name} is no picture that this browser can read.`);
  });
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  // Photographs as JPEG; PNG where it may be transparent or drawn.
  const url = file.type === "image/jpeg" ? canvas.toDataURL("image/jpeg", 0.9) : canvas.toDataURL("image/png");
  return { kind: "image", part: { type: "image_url", image_url: { url } }, url, name };
}

async function dataUrl(blob) {
  return await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${blob.name} cannot be read.`));
    reader.readAsDataURL(blob);
  });
}
