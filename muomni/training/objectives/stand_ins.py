"""Stand-ins for what a batch does not hold, so that every pass runs every encoder, head and Talker that learns.

Processes that share a step wait for each other's gradients (DDP) or gather weights together (FSDP): one whose rows
hold no picture must not leave the others waiting. No placeholder takes the features of a stand-in, and losses over
stand-ins weigh nothing, so all their gradients are zero. One process alone does the same: otherwise an optimizer
would skip a parameter without a gradient there, and follow its momentum with several.
"""

from collections.abc import Collection
from dataclasses import replace

import torch

from muomni.data import Batch
from muomni.model import OmniModel
from muomni.model.inputs import AudioBatch, Captions, ImageBatch, MediaBatch, Transcripts
from muomni.model.talker import blank_speech


def with_stand_ins(batch: Batch, model: OmniModel, losses: Collection[str]) -> Batch:
    """The batch with a stand-in for each thing that it lacks and that a pass must compute.

    Args:
        batch: on the model's device.
        model: which encoders there are.
        losses: names of the objectives that are computed.
    """
    device, media = batch.input_ids.device, batch.media or MediaBatch()
    text = "text" in losses
    if media.images is None and model.vision is not None and (text or "contrastive" in losses):
        shuffle, patch = model.vision.config.pixel_shuffle_factor, model.vision.config.patch_size
        patches = torch.zeros(shuffle * shuffle, 3 * patch**2, device=device)
        media = replace(media, images=ImageBatch(patches, ((shuffle, shuffle),), stand_in=True))
    if media.clips is None and model.audio is not None and (text or "ctc" in losses):
        mel = torch.zeros(8, model.audio.config.num_mel_bins, device=device)
        media = replace(media, clips=AudioBatch(mel, (8,), stand_in=True))
    one = torch.ones(1, dtype=torch.int64, device=device)
    if "contrastive" in losses and media.captions is None:
        media = replace(media, captions=Captions(one, (1,), (0,), one))
    if "ctc" in losses and media.transcripts is None:
        media = replace(media, transcripts=Transcripts.of([(0, b"\0")], device))
    speech = batch.speech
    if "speech" in losses and speech is None and model.talker is not None:
        speech = blank_speech(model.talker.config, device)
    return replace(batch, media=media, speech=speech)
