"""The model speaks.

Read in this order:

* `settings`: what may be asked for; `text`: sentences as the Talker reads them, also while their words still come.
* `speaker`: sentences side by side in slots, frame by frame, how the place in the text moves on, and the speakers kept
  between calls.
* `heard`: when which word is said.
* `offline`: texts that are known; `streaming`: a text that comes in pieces, and replies that are spoken meanwhile.
"""

from muomni.infer.speech.heard import SaidWords
from muomni.infer.speech.offline import Speech, speak_all, speech_of
from muomni.infer.speech.settings import SpeechSettings
from muomni.infer.speech.speaker import SpeakerPool
from muomni.infer.speech.streaming import AHEAD_S, SpokenStream, TextSpeech, speak_pieces
from muomni.infer.streaming import SpeechTiming

__all__ = [
    "AHEAD_S",
    "SaidWords",
    "SpeakerPool",
    "Speech",
    "SpeechSettings",
    "SpeechTiming",
    "SpokenStream",
    "TextSpeech",
    "speak_all",
    "speak_pieces",
    "speech_of",
]
