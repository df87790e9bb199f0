"""The whole model as an `nn.Module`: what training and inference both call. Read this first.

Legend: B batch, T tokens, D hidden_size, V vocabulary, N tokens of all pictures, of all clips or of all sentences.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.config import AudioConfig, OmniConfig, VisionConfig
from muomni.errors import UserError
from muomni.model.codec.frozen import FrozenCodec
from muomni.model.encoders.audio import AudioEncoder
from muomni.model.encoders.auxiliary_heads import ContrastiveHead, CtcHead
from muomni.model.encoders.projector import Projector
from muomni.model.encoders.siglip import SiglipEncoder
from muomni.model.encoders.vision import VisionEncoder
from muomni.model.encoders.whisper import WhisperEncoder
from muomni.model.inputs import AudioBatch, ImageBatch, MediaBatch
from muomni.model.int8_layers import Int8Embedding, Int8Weight, is_quantized
from muomni.model.kv_cache import Cache
from muomni.model.outputs import LOSSES, Features, OmniOutput
from muomni.model.placeholders import fill_placeholders
from muomni.model.talker import SpeechBatch, Talker, TalkerLosses, blank_speech
from muomni.model.talker.packing import lay_out_sentences
from muomni.model.thinker import Thinker
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE, linear_cross_entropy, shift_labels

# Positions whose logits are in memory at one time where the loss is computed through a quantised head.
_LOSS_ROWS = 512
_MUTE = "the model does not speak: it has no Talker; train one with model.talker"


class OmniModel(nn.Module):
    """Text, pictures and sounds in, text and speech out; plain `nn.Linear`s and convolutions until it is quantised.

    Args:
        config: sizes. Weights are drawn on construction unless the model is built on `meta`.
        generator: source of the initial weights; None takes torch's default one. The Thinker's are drawn first, so
            they do not depend on the encoders.

    Attributes:
        thinker: the language model.
        vision, vision_projector: the encoder of pictures and what brings its tokens to the Thinker, or None.
        audio, audio_projector: the same for sounds.
        vision_head, audio_head: of the contrastive and of the CTC loss, or None.
        talker, codec: what speaks, and what makes sound of its codes, or None. The codec never learns.
        frozen: the parts that do not learn, see `freeze`.
        run_all: a pass with labels runs every encoder and head, on a blank where the batch has no media for it, with
            gradients of zero. Processes that share a step need that: they wait for each other's gradients.
    """

    def __init__(self, config: OmniConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.frozen: frozenset[str] = frozenset()
        self.run_all = False
        self.thinker = Thinker(config.thinker)
        self.vision: VisionEncoder | SiglipEncoder | None = None
        self.vision_projector: Projector | None = None
        self.vision_head: ContrastiveHead | None = None
        self.audio: AudioEncoder | WhisperEncoder | None = None
        self.audio_projector: Projector | None = None
        self.audio_head: CtcHead | None = None
        self.talker: Talker | None = None
        self.codec: FrozenCodec | None = None
        width = config.thinker.hidden_size
        if config.vision is not None:
            seen = config.vision
            self.vision = VisionEncoder(seen) if isinstance(seen, VisionConfig) else SiglipEncoder(seen)
            self.vision_projector = Projector(config.vision.output_size, width)
            if config.vision.projection_dim is not None:
                self.vision_head = ContrastiveHead(config.vision.output_size, width, config.vision.projection_dim)
        if config.audio is not None:
            heard = config.audio
            self.audio = AudioEncoder(heard) if isinstance(heard, AudioConfig) else WhisperEncoder(heard)
            self.audio_projector = Projector(config.audio.output_size, width)
            if config.audio.ctc:
                self.audio_head = CtcHead(config.audio.output_size)
        if config.talker is not None and config.codec is not None:
            self.talker = Talker(config.talker, width)
            self.codec = FrozenCodec.to_be_loaded(config.codec)
        if self.device.type != "meta":
            self._init_weights(generator)

    def _init_weights(self, generator: torch.Generator | None) -> None:
        self.thinker.init_weights(generator)
        for projector in (self.vision_projector, self.audio_projector):
            if projector is not None:
                projector.init_weights(self.config.thinker.initializer_range, generator)
        for module in (self.vision, self.vision_head, self.audio, self.audio_head, self.talker):
            if module is not None:
                module.init_weights(generator)

    @property
    def device(self) -> torch.device:
        return self.thinker.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and of the weights unless they are int8."""
        embedding = self.thinker.embed_tokens
        return embedding.dtype if isinstance(embedding, Int8Embedding) else embedding.weight.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are int8; then the model computes and saves as ever, and does not learn."""
        return is_quantized(self)

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """What can be frozen: `thinker`, `vision`, `vision_projector`, `audio`, `audio_projector` and `talker`, if
        it is there.

        A head belongs to the encoder that it teaches.
        """
        modules = {
            "thinker": (self.thinker,),
            "vision": (self.vision, self.vision_head),
            "vision_projector": (self.vision_projector,),
            "audio": (self.audio, self.audio_head),
            "audio_projector": (self.audio_projector,),
            "talker": (self.talker,),
        }
        present = {name: tuple(m for m in group if m is not None) for name, group in modules.items()}
        return {name: group for name, group in present.items() if group}

    def freeze(self, parts: Iterable[str]) -> None:
        """Makes exactly these parts not learn: no gradients, and evaluation mode, also after `train()`.

        Raises:
            UserError: the model has no such part.
        """
        wanted = frozenset(parts)
        unknown = wanted - self.parts.keys()
        if unknown:
            raise UserError(f"cannot freeze {', '.join(sorted(unknown))}: the model has {', '.join(self.parts)}")
        for name in wanted | self.frozen:
            for module in self.parts[name]:
                module.requires_grad_(name not in wanted)
        self.frozen = wanted
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ever, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            for module in self.parts[name]:
                module.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As ever, but the codec never learns."""
        super().requires_grad_(requires_grad)
        if self.codec is not None:
            self.codec.requires_grad_(False)
        return self

    def forward(
        self,
        input_ids: Tensor,
        *,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        num_targets: int | Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
        media: MediaBatch | None = None,
        features: Features | None = None,
        divisors: Mapping[str, int | Tensor] | None = None,
        weights: Mapping[str, float] | None = None,
        speech: SpeechBatch | None = None,
    ) -> OmniOutput:
        """Logits, or the loss.

        Args:
            input_ids: (B, T) int64, with a placeholder for every token of a picture or clip.
            labels: (B, T) int64, unshifted as in Hugging Face (`labels=input_ids` trains on
                everything), −100 where there is no loss. With labels no logits are returned.
            positions: (B, T) int64, or (3, B, T) of time, height and width, which pictures need; None counts from 0,
                or from the cache's length.
            segments: documents of packed rows.
            num_targets: the text loss is the sum over target tokens divided by this; None divides by the
                targets of this call. Training gives the number of the whole optimizer step.
            cache: a KV cache to read and extend.
            last: compute logits of this many last positions only.
            media: pictures and clips, in the order of their placeholders, to be encoded.
            features: or else what `embed_images` and `embed_clips` gave for them before.
            divisors: as `num_targets`, by the names of the losses: `ctc` is a sum over bytes of transcripts,
                `contrastive` over captions, `speech` over frames, `text` the same as `num_targets`. Those not named
                divide by this call's.
            weights: of the losses in the sum. `text` is 1 unless named; with 0 the Thinker is not computed. Others are
                computed only if they are named with more than 0, and `media` or `speech` has what they learn from.
            speech: sentences and how they were spoken, besides the rows; for the loss.

        Raises:
            ValueError: an argument that would otherwise be ignored, or placeholders and features do not fit.
            UserError: the model has no encoder for the media, or no head for a loss.
        """
        divisors, weights = self._check_losses(labels, num_targets, divisors, weights)
        _check_labels(labels, speech, cache, last)
        if media is not None and features is not None:
            raise ValueError("features are media that are encoded: give media or features, not both")
        losses: dict[str, Tensor] = {}
        impossible = nothing = None
        blanks = self.run_all and labels is not None
        if media is not None or blanks:
            encoded, losses, impossible, nothing = self._encode(media or MediaBatch(), divisors, weights, blanks)
            features = encoded if features is None else features
        spoken = self._speech_losses(speech, weights, blanks)
        if spoken is not None and (speech is None or weights.get("speech", 0) == 0):
            nothing = 0 * (spoken.codes + spoken.moves) + (0 if nothing is None else nothing)
            spoken = None
        if spoken is not None and speech is not None:
            losses["speech"] = (spoken.codes + spoken.moves) / divisors.get("speech", speech.num_frames)
        if labels is not None and weights["text"] == 0:
            loss = _weighted(losses, weights) if losses else self._idle_heads(losses)
            loss = loss if nothing is None else loss + nothing
            return OmniOutput(None, loss=loss, losses=losses, impossible=impossible, speech=spoken)
        embeds = self._embeds(input_ids, features, positions, cache)
        if embeds is None:
            hidden = self.thinker(input_ids, positions, segments, cache)
        else:
            hidden = self.thinker(None, positions, segments, cache, inputs_embeds=embeds)
        if labels is None:
            wanted = hidden if last is None else hidden[:, -last:]
            return OmniOutput(hidden, logits=self.thinker.lm_head(wanted))
        targets = shift_labels(labels)
        total = self._total_loss(hidden.flatten(0, 1), targets.flatten())
        divisor = divisors.get("text")
        if divisor is None:
            divisor = (targets != IGNORE).sum().clamp(min=1)
        losses = {"text": total / divisor} | losses
        loss = _weighted(losses, weights)
        if nothing is not None:
            loss = loss + nothing
        return OmniOutput(hidden, loss=loss, losses=losses, impossible=impossible, speech=spoken)

    def talker_states(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """What the Talker reads of the Thinker: its states after `thinker_layer` blocks, of sentences read alone.

        Args:
            ids: (N,) int64 tokens of all sentences, one behind the other.
            lengths: tokens of each, at least 1; they add up to N.

        Returns:
            (N, D), without the last norm.

        Raises:
            UserError: the model has no Talker.
            ValueError: the lengths do not add up.
        """
        if self.config.talker is None:
            raise UserError(_MUTE)
        if sum(lengths) != len(ids) or 0 in lengths:
            raise ValueError(f"{len(ids)} tokens cannot be sentences of {tuple(lengths)}, each of at least one")
        positions, segments = lay_out_sentences(lengths, ids.device)
        row = F.pad(ids, (0, positions.shape[1] - len(ids)))[None]
        layers = self.config.talker.thinker_layer
        with torch.set_grad_enabled(torch.is_grad_enabled() and "thinker" not in self.frozen):
            states: Tensor = self.thinker(row, positions, segments, layers=layers)[0, : len(ids)]
        return states

    def embed_images(self, images: ImageBatch) -> Tensor:
        """(N, D) what stands in the place of the pictures' placeholders; the images on the model's device.

        Raises:
            UserError: the model has no vision encoder.
        """
        if self.vision_projector is None:
            raise UserError("the model does not see: it has no vision encoder; train one with model.vision")
        features: Tensor = self.vision_projector(self._see(images))
        return features

    def embed_clips(self, clips: AudioBatch) -> Tensor:
        """(N, D) what stands in the place of the clips' placeholders; the clips on the model's device.

        Raises:
            UserError: the model has no audio encoder.
        """
        if self.audio_projector is None:
            raise UserError("the model does not hear: it has no audio encoder; train one with model.audio")
        features: Tensor = self.audio_projector(self._hear(clips))
        return features

    def embed(self, input_ids: Tensor, features: Features) -> Tensor:
        """(B, T, D) embeddings of the tokens, with the features in the place of placeholders.

        Raises:
            ValueError: their numbers differ (on a GPU: see `fill_placeholders`).
            UserError: features that the model has no placeholder for.
        """
        config = self.config
        places = {
            "picture": (features.image, config.image_token_id),
            "sound": (features.audio, config.audio_token_id),
        }
        for kind, (given, token) in places.items():
            if token is None and given is not None:
                raise UserError(f"the model has no placeholder for a {kind}: it has no encoder for one")
        x: Tensor = self.thinker.embed_tokens(input_ids)
        for given, token in places.values():
            if token is not None:
                x = fill_placeholders(x, input_ids, token, x.new_empty(0, x.shape[-1]) if given is None else given)
        return x

    def num_parameters(self, module: nn.Module | None = None) -> int:
        """Parameters of the model or of a module of it, a tied head counted once; int8 scales do not count."""
        counted = self if module is None else module
        int8 = {id(m.weight): m.weight.numel() for m in counted.modules() if isinstance(m, Int8Weight)}
        return sum(parameter.numel() for parameter in counted.parameters()) + sum(int8.values())

    def _total_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of (N, D) states; a head without float weights gives its logits in pieces."""
        head = self.thinker.lm_head
        weight = head.weight
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return linear_cross_entropy(hidden, weight, targets)
        if self.training and torch.is_grad_enabled():
            raise UserError("a quantised model cannot be trained: train the float one, then quantise it again")
        pieces = zip(torch.split(hidden, _LOSS_ROWS), torch.split(targets, _LOSS_ROWS), strict=True)
        losses = [F.cross_entropy(head(x).float(), y, ignore_index=IGNORE, reduction="sum") for x, y in pieces]
        return torch.stack(losses).sum()

    def _embeds(
        self, input_ids: Tensor, features: Features | None, positions: Tensor | None, cache: Cache | None
    ) -> Tensor | None:
        """What the Thinker reads instead of tokens; None where there are only tokens."""
        if features is None or (features.image is None and features.audio is None):
            # With a cache the caller says what each token is; a generated placeholder is a token like others.
            missing = cache is None and (self.vision is not None or self.audio is not None)
            return self.embed(input_ids, Features()) if missing else None
        if features.image is not None and (positions is None or positions.ndim != 3):
            raise ValueError("pictures have positions on three axes: give (3, B, T) positions, see `media_positions`")
        return self.embed(input_ids, features)

    def _see(self, images: ImageBatch) -> Tensor:
        if self.vision is None:
            raise UserError("the model does not see: it has no vision encoder; train one with model.vision")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision" not in self.frozen):
            tokens: Tensor = self.vision(images)
        return tokens

    def _hear(self, clips: AudioBatch) -> Tensor:
        if self.audio is None:
            raise UserError("the model does not hear: it has no audio encoder; train one with model.audio")
        with torch.set_grad_enabled(torch.is_grad_enabled() and "audio" not in self.frozen):
            tokens: Tensor = self.audio(clips)
        return tokens

    def _speech_losses(
        self, speech: SpeechBatch | None, weights: Mapping[str, float], blanks: bool
    ) -> TalkerLosses | None:
        """Of the batch's sentences; of a blank where there are none and `blanks` asks for it; or None."""
        weight = weights.get("speech", 0)
        if self.talker is None:
            if speech is not None:
                raise UserError(_MUTE)
            return None
        if speech is None or weight == 0:
            if not blanks or (weight == 0 and "talker" in self.frozen):
                return None
            speech = blank_speech(self.talker.config, self.device)
        losses: TalkerLosses = self.talker(speech, self.talker_states(speech.ids, speech.id_lengths))
        return losses

    def _encode(
        self, media: MediaBatch, divisors: Mapping[str, int | Tensor], weights: Mapping[str, float], blanks: bool
    ) -> tuple[Features, dict[str, Tensor], Tensor | None, Tensor | None]:
        """Features of the media, and the losses of the encoders' own heads; their tokens are computed once.

        With `blanks`, last, zero with zero gradients for what this batch did not use; see `run_all`. An encoder runs
        on its blank where it would run on media: processes that gather weights together come to it in one order.
        """
        image = audio = impossible = None
        nothing = torch.zeros((), device=self.device) if blanks else None
        losses: dict[str, Tensor] = {}
        if media.images is not None:
            tokens = self._see(media.images)
            assert self.vision is not None and self.vision_projector is not None
            image = self.vision_projector(tokens)
            if weights.get("contrastive", 0) > 0 and media.captions is not None:
                assert self.vision_head is not None
                words = self.thinker.embed_tokens(media.captions.ids)
                total = self.vision_head(tokens, self.vision.counts(media.images), words, media.captions)
                losses["contrastive"] = total / divisors.get("contrastive", len(media.captions.lengths))
        elif nothing is not None and self.config.vision is not None:
            m, patch = self.config.vision.pixel_shuffle_factor, self.config.vision.patch_size
            picture = ImageBatch(torch.zeros(m * m, 3 * patch**2, device=self.device), ((m, m),))
            nothing = nothing + 0 * self.embed_images(picture).sum()
        if media.clips is not None:
            tokens = self._hear(media.clips)
            assert self.audio is not None and self.audio_projector is not None
            audio = self.audio_projector(tokens)
            if weights.get("ctc", 0) > 0 and media.transcripts is not None:
                assert self.audio_head is not None
                found = self.audio_head(tokens, self.audio.counts(media.clips), media.transcripts)
                losses["ctc"] = found.total / divisors.get("ctc", sum(media.transcripts.lengths))
                impossible = found.impossible
        elif nothing is not None and self.config.audio is not None:
            clip = AudioBatch(torch.zeros(8, self.config.audio.num_mel_bins, device=self.device), (8,))
            nothing = nothing + 0 * self.embed_clips(clip).sum()
        if nothing is not None:
            nothing = nothing + self._idle_heads(losses)
        return Features(image, audio), losses, impossible, nothing

    def _idle_heads(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Zero, and zero gradients for heads without a loss."""
        zero = torch.zeros((), device=self.device)
        for name, head in (("contrastive", self.vision_head), ("ctc", self.audio_head)):
            if head is not None and name not in losses:
                zero = zero + 0 * torch.stack([parameter.sum() for parameter in head.parameters()]).sum()
        return zero

    def _check_losses(
        self,
        labels: Tensor | None,
        num_targets: int | Tensor | None,
        divisors: Mapping[str, int | Tensor] | None,
        weights: Mapping[str, float] | None,
    ) -> tuple[dict[str, int | Tensor], dict[str, float]]:
        """Divisors, with `num_targets` as that of the text, and weights."""
        if labels is None and (num_targets is not None or divisors is not None or weights is not None):
            raise ValueError("num_targets, divisors and weights are for the loss: give labels too")
        unknown = {*(divisors or ()), *(weights or ())} - set(LOSSES)
        if unknown:
            raise ValueError(f"no loss is called {', '.join(sorted(unknown))}: there are {', '.join(LOSSES)}")
        if (weights or {}).get("speech", 0) > 0 and self.talker is None:
            raise UserError(_MUTE)
        for name, head in (("contrastive", self.vision_head), ("ctc", self.audio_head)):
            if (weights or {}).get(name, 0) > 0 and head is None:
                option = "vision.projection_dim" if name == "contrastive" else "audio.ctc"
                raise UserError(f"the model has no head for the {name} loss: its {option} is not set")
        given = dict(divisors or {})
        if num_targets is not None:
            if "text" in given:
                raise ValueError('num_targets is divisors["text"]: give one of them')
            given["text"] = num_targets
        return given, {"text": 1.0} | dict(weights or {})


def _check_labels(labels: Tensor | None, speech: SpeechBatch | None, cache: Cache | None, last: int | None) -> None:
    """Refuses what goes only with a loss, or not with one."""
    if speech is not None and labels is None:
        raise ValueError("speech is for the loss: give labels too")
    if labels is not None and (cache is not None or last is not None):
        raise ValueError("labels ask for a loss over whole rows: give neither cache nor last")


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the losses by their weights."""
    total: Tensor | None = None
    for name, loss in losses.items():
        part = loss if weights[name] == 1 else loss * weights[name]
        total = part if total is None else total + part
    assert total is not None
    return total
