"""The model speaks. Read in this order:

* `settings`: what may be asked for; `text`: sentences as the Talker reads them, also while their words still come.
* `pointer`: how the place in the text moves on, and how speech ends.
* `steps`: who computes the Talker's backbone; `speaker`: sentences side by side, frame by frame.
* `batch`: texts that are known; `stream`: a text that comes in pieces, and replies that are spoken while they come.
* `session`: what is kept between calls; `model`: the part of `MuOmni` that speaks.
"""

from muomni.infer.speak.batch import Speech, speak_all
from muomni.infer.speak.model import Speak, SpeakingModel
from muomni.infer.speak.session import SpeechSession
from muomni.infer.speak.settings import SpeechSettings, SpeechTiming, speech_settings
from muomni.infer.speak.stream import SpokenStream, TextSpeech, speak_pieces

__all__ = [
    "Speak",
    "SpeakingModel",
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
