"""The model speaks. Read in this order:

* `settings`: what may be asked for; `text`: sentences as the Talker reads them, also while their words still come.
* `pointer`: how the place in the text moves on, and how speech ends.
* `steps`: who computes the Talker's backbone; `speaker`: sentences side by side, frame by frame.
* `batch`: texts that are known; `stream`: a text that comes in pieces, and replies that are spoken while they come.
* `session`: what is kept between calls.
"""

from muomni.infer.reply import SpeechTiming
from muomni.infer.speech.offline import Speech, speak_all
from muomni.infer.speech.settings import SpeechSettings, speech_settings
from muomni.infer.speech.speaker_pool import SpeechSession
from muomni.infer.speech.streaming import SpokenStream, TextSpeech, speak_pieces

__all__ = [
    "Speech",
    "SpeechSession",
    "SpeechSettings",
    "SpeechTiming",
    "SpokenStream",
    "TextSpeech",
    "speak_all",
    "speak_pieces",
    "speech_settings",
]
