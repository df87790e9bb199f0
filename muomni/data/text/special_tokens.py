"""The special tokens of our tokenizers and chat template."""

from collections.abc import Mapping
from dataclasses import dataclass

from muomni.data.media.media_ref import Kind


@dataclass(frozen=True)
class SpecialTokens:
    """Names of the special tokens, in the order of their ids in a tokenizer that is trained here.

    Attributes:
        end_of_text: ends a document.
        pad: fills up batches; never learnt.
        im_start, im_end: around a turn of a conversation.
        image, audio: the place of one embedding of an image or a sound.
        vision_start, vision_end, audio_start, audio_end: around those places.
        speech: the place of one frame of speech that is spoken.
    """

    end_of_text: str = "<|endoftext|>"
    pad: str = "<|pad|>"
    im_start: str = "<|im_start|>"
    im_end: str = "<|im_end|>"
    vision_start: str = "<|vision_start|>"
    vision_end: str = "<|vision_end|>"
    image: str = "<|image|>"
    audio_start: str = "<|audio_start|>"
    audio_end: str = "<|audio_end|>"
    audio: str = "<|audio|>"
    speech: str = "<|speech|>"


SPECIAL = SpecialTokens()
# What the template writes for a medium: one token, which `expand` repeats, and marks around it.
PLACEHOLDERS: Mapping[str, Kind] = {SPECIAL.image: "image", SPECIAL.audio: "audio"}
MEDIA_MARKS = (*PLACEHOLDERS, SPECIAL.vision_start, SPECIAL.vision_end, SPECIAL.audio_start, SPECIAL.audio_end)
