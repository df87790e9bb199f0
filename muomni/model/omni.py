"""The whole model as an `nn.Module`: what training and inference both call. Read this first.

Legend: B batch, T tokens, D hidden_size, V vocabulary, N tokens of all pictures, of all clips or of all sentences.
"""

from collections.abc import Sequence
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
from muomni.model.int8_layers import dtype_of, is_quantized, num_scales
from muomni.model.kv_cache import Cache
from muomni.model.outputs import Features, OmniOutput
from muomni.model.placeholders import fill_placeholders
from muomni.model.talker import Talker
from muomni.model.talker.packing import lay_out_sentences
from muomni.model.thinker import Thinker
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import IGNORE, linear_cross_entropy, shift_labels

# Positions whose logits are in memory at one time where the loss is computed through a quantised head.
_LOSS_ROWS = 512
MUTE = "the model does not speak: it has no Talker; train one with model.talker"


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
    """

    def __init__(self, config: OmniConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
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
        """Of the embedding; the other weights are there too."""
        return self.thinker.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations, and of the weights unless they are int8."""
        return dtype_of(self.thinker.embed_tokens)

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are int8; then the model computes and saves as ever, and does not learn."""
        return is_quantized(self)

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
        media: MediaBatch | Features | None = None,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        labels: Tensor | None = None,
    ) -> OmniOutput:
        """Logits, or the loss of the text; other losses are those of `training.objectives`.

        Args:
            input_ids: (B, T) int64, with a placeholder for every token of a picture or clip.
            media: pictures and clips in the order of their placeholders, or what `encode_media` gave for them.
            positions: (B, T) int64, or (3, B, T) of time, height and width, which pictures need; None counts from 0,
                or from the cache's length.
            segments: documents of packed rows.
            cache: a KV cache to read and extend.
            logits_to_keep: compute logits of this many last positions only; 0 for all.
            labels: (B, T) int64, unshifted as in Hugging Face (`labels=input_ids` trains on everything), −100 where
                there is no loss. With labels no logits are returned.

        Raises:
            ValueError: an argument that would otherwise be ignored, or placeholders and features do not fit.
            UserError: the model has no encoder for the media.
        """
        if labels is not None and (cache is not None or logits_to_keep):
            raise ValueError("labels ask for a loss over whole rows: give neither cache nor logits_to_keep")
        hidden = self.hidden_states(input_ids, media=media, positions=positions, segments=segments, cache=cache)
        if labels is None:
            return OmniOutput(logits=self.thinker.lm_head(hidden[:, -logits_to_keep:]), hidden=hidden)
        num_targets = (shift_labels(labels) != IGNORE).sum().clamp(min=1)
        return OmniOutput(loss=self.text_loss(hidden, labels) / num_targets, hidden=hidden)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        media: MediaBatch | Features | None = None,
        positions: Tensor | None = None,
        segments: Segments | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, T, D) what the logits are made from; arguments as in `forward`."""
        features = self.encode_media(media) if isinstance(media, MediaBatch) else media
        seen = features is not None and features.image is not None and "image" not in features.stand_ins
        if seen and (positions is None or positions.ndim != 3):
            raise ValueError("pictures have positions on three axes: give (3, B, T) positions, see `mrope_positions`")
        if features is None and cache is not None:
            # With a cache the caller says what each token is; a generated placeholder is a token like others.
            embeds = self.thinker.embed_tokens(input_ids)
        else:
            embeds = self.embed(input_ids, features or Features())
        hidden: Tensor = self.thinker(None, positions, segments, cache, inputs_embeds=embeds)
        return hidden

    def text_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The summed cross-entropy of (B, T) labels, unshifted; the logits are never in memory all at once.

        Raises:
            UserError: the model is quantised and is to be trained.
        """
        states, targets, head = hidden.flatten(0, 1), shift_labels(labels).flatten(), self.thinker.lm_head
        weight = head.weight
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return linear_cross_entropy(states, weight, targets)
        if self.training and torch.is_grad_enabled():
            raise UserError("a quantised model cannot be trained: train the float one, then quantise it again")
        pieces = zip(torch.split(states, _LOSS_ROWS), torch.split(targets, _LOSS_ROWS), strict=True)
        losses = [F.cross_entropy(head(x).float(), y, ignore_index=IGNORE, reduction="sum") for x, y in pieces]
        return torch.stack(losses).sum()

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
            raise UserError(MUTE)
        if sum(lengths) != len(ids) or 0 in lengths:
            raise ValueError(f"{len(ids)} tokens cannot be sentences of {tuple(lengths)}, each of at least one")
        positions, segments = lay_out_sentences(lengths, ids.device)
        row = F.pad(ids, (0, positions.shape[1] - len(ids)))[None]
        layers = self.config.talker.thinker_layer
        states: Tensor = self.thinker(row, positions, segments, layers=layers)[0, : len(ids)]
        return states

    def encode_media(self, media: MediaBatch) -> Features:
        """What stands in the place of placeholders; the media on the model's device.

        Raises:
            UserError: the model has no encoder for them.
        """
        images, clips = media.images, media.clips
        return Features(
            None if images is None else self.project_images(self.encode_images(images)),
            None if clips is None else self.project_clips(self.encode_clips(clips)),
            media.stand_ins,
        )

    def encode_images(self, images: ImageBatch) -> Tensor:
        """(N, width) tokens of the vision encoder, before the projector."""
        if self.vision is None:
            raise UserError("the model does not see: it has no vision encoder; train one with model.vision")
        tokens: Tensor = self.vision(images)
        return tokens

    def encode_clips(self, clips: AudioBatch) -> Tensor:
        """(N, width) tokens of the audio encoder, before the projector."""
        if self.audio is None:
            raise UserError("the model does not hear: it has no audio encoder; train one with model.audio")
        tokens: Tensor = self.audio(clips)
        return tokens

    def project_images(self, tokens: Tensor) -> Tensor:
        """(N, width) of `encode_images` to (N, D), as the Thinker takes them."""
        assert self.vision_projector is not None
        features: Tensor = self.vision_projector(tokens)
        return features

    def project_clips(self, tokens: Tensor) -> Tensor:
        """(N, width) of `encode_clips` to (N, D), as the Thinker takes them."""
        assert self.audio_projector is not None
        features: Tensor = self.audio_projector(tokens)
        return features

    def embed(self, input_ids: Tensor, features: Features) -> Tensor:
        """(B, T, D) embeddings of the tokens, with the features in the place of placeholders.

        Raises:
            ValueError: their numbers differ (on a GPU: see `fill_placeholders`).
            UserError: features that the model has no placeholder for.
        """
        places = (
            ("image", features.image, self.config.image_token_id),
            ("audio", features.audio, self.config.audio_token_id),
        )
        for name, given, token in places:
            if token is None and given is not None:
                raise UserError(f"the model has no placeholder for {name} features: it has no encoder for them")
        x: Tensor = self.thinker.embed_tokens(input_ids)
        for name, given, token in places:
            if token is not None:
                given = x.new_empty(0, x.shape[-1]) if given is None else given
                stand_in = name in features.stand_ins
                x = fill_placeholders(x, input_ids == token, given, f"id {token}", stand_in=stand_in)
        return x

    def num_parameters(self, module: nn.Module | None = None, *, exclude_embeddings: bool = False) -> int:
        """Parameters of the model or of a module of it, a tied head counted once; int8 scales do not count.

        Args:
            module: None counts the whole model.
            exclude_embeddings: leave out the table of the token embeddings, as `transformers.Trainer` asks.
        """
        counted = self if module is None else module
        embeddings = self.thinker.embed_tokens.weight.numel() if exclude_embeddings else 0
        return sum(parameter.numel() for parameter in counted.parameters()) - num_scales(counted) - embeddings
