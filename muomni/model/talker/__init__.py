"""The Talker, the part that speaks. Read `talker` first, then `text`, `codes`, `layout` and `batch`."""

from muomni.model.talker.batch import SpeechBatch, blank_speech
from muomni.model.talker.packing import NONE, delay, undelay
from muomni.model.talker.talker import Talker, TalkerTargets

__all__ = ["NONE", "SpeechBatch", "Talker", "TalkerTargets", "blank_speech", "delay", "undelay"]
