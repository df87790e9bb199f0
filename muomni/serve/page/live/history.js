// A conversation so far, as items of a live one.

import { RATE, toBase64, toInt16 } from "../sound/pcm.js";

export async function items(conversation) {
  const made = [];
  for (const turn of conversation.turns.filter((each) => each.answer.content)) {
    made.push(await message(turn));
    made.push({ type: "message", role: "assistant", content: [{ type: "output_text", text: turn.answer.content }] });
  }
  return made;
}

// What the user wrote and showed in a turn.
export async function message({ media, text }) {
  const content = await Promise.all(media.map(part));
  if (text) content.push({ type: "input_text", text });
  return { type: "message", role: "user", content };
}

async function part({ kind, url, blob }) {
  if (kind === "image") return { type: "input_image", image_url: url };
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  return { type: "input_audio", audio: toBase64(toInt16(sound.getChannelData(0))) };
}
