// The settings as those of a live session; `speech`: whether the model speaks.

import { RATE } from "../sound/pcm.js";

const MOST_TOKENS = 4096; // that the API takes

export function wanted({ system, voice, interruptible, captions, sampling }, speech) {
  const format = { type: "audio/pcm", rate: RATE };
  const turn_detection = { type: "server_vad", create_response: true, interrupt_response: interruptible };
  const input = { format, turn_detection, transcription: captions ? {} : null };
  return {
    type: "realtime",
    instructions: system,
    output_modalities: [speech ? "audio" : "text"],
    max_output_tokens: sampling.max_tokens ? Math.min(MOST_TOKENS, sampling.max_tokens) : "inf",
    audio: voice ? { input, output: { format, voice } } : { input },
  };
}
