"""Floating-point operations of the model's matrix products, by part; benchmarks read them.

Counted are products with weights, convolutions, and the two products of attention; a multiplication and an addition
are two operations. Norms, rotary positions, activations, softmax and lookups are not: they are bound by memory, so a
part that is narrow takes more time than its share of these numbers. Nor is what an implementation computes twice
(checkpointing, the scores in flash attention's backward pass) or for nothing (padding to a kernel's block).

Legend: N tokens or patches, D width, n tokens of a document, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from muomni.config import OmniConfig, SiglipConfig, ThinkerConfig, WhisperConfig
from muomni.config.encoders import AudioEncoderConfig, VisionEncoderConfig
from muomni.config.talker import TalkerConfig
from muomni.model.encoders import audio, vision, whisper
from muomni.model.encoders.auxiliary_heads import CLASSES
from muomni.model.inputs import MediaBatch, filled, row_length
from muomni.model.talker import SpeechBatch
from muomni.ops.audio_frames import CTC_STEPS, num_tokens

Grid = tuple[int, int]


@dataclass(frozen=True)
class Flops:
    """Of a forward pass.

    Attributes:
        weights: in products with weights, convolutions included.
        attention: in attention's scores and the sums of values.
        leaves: the part of `weights` whose input is data (or is taken as it is), so that a backward pass computes the
            weights' gradient only.
    """

    weights: int = 0
    attention: int = 0
    leaves: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.weights + other.weights, self.attention + other.attention, self.leaves + other.leaves)

    @property
    def forward(self) -> int:
        """Of the forward pass."""
        return self.weights + self.attention

    @property
    def training(self) -> int:
        """Of the forward and the backward pass, where everything learns: a product has two gradients."""
        return 3 * self.forward - self.leaves


def model_flops(
    config: OmniConfig,
    lengths: Sequence[int],
    media: MediaBatch | None = None,
    losses: Sequence[str] = (),
    speech: SpeechBatch | None = None,
) -> dict[str, Flops]:
    """What a batch costs, by the names of the model's parts. The output head counts to the Thinker, for all tokens.

    Args:
        config: sizes.
        lengths: tokens of each document of the batch, padding included; none where the text has no weight.
        media: what comes with them.
        losses: the other losses that are computed, `ctc` and `contrastive`; a head counts to its encoder.
        speech: sentences that the Talker learns from; what the Thinker reads of them counts to the Thinker.

    Raises:
        ValueError: media, losses or speech that the model has no part for.
    """
    found = {"thinker": thinker_flops(config.thinker, lengths, logits=sum(lengths))}
    width = config.thinker.hidden_size
    if media is not None and media.images is not None:
        seeing, grids = config.vision, media.images.grids
        if seeing is None:
            raise ValueError("pictures, but no vision encoder")
        tokens = sum(rows * columns for rows, columns in grids) // seeing.pixel_shuffle_factor**2
        found["vision"] = vision_flops(seeing, grids)
        found["vision_projector"] = projector_flops(seeing.output_size, width, tokens)
        if media.captions is not None and "contrastive" in losses:
            if seeing.projection_dim is None:
                raise ValueError("a contrastive loss, but no head for it")
            captions = len(media.captions.lengths)
            found["vision"] += contrastive_flops(seeing.output_size, width, seeing.projection_dim, len(grids), captions)
    if media is not None and media.clips is not None:
        hearing, frames = config.audio, media.clips.frames
        if hearing is None:
            raise ValueError("sounds, but no audio encoder")
        counts = [num_tokens(count) for count in frames]
        found["audio"] = audio_flops(hearing, frames)
        found["audio_projector"] = projector_flops(hearing.output_size, width, sum(counts))
        if media.transcripts is not None and "ctc" in losses:
            if not hearing.ctc:
                raise ValueError("a CTC loss, but no head for it")
            found["audio"] += ctc_flops(hearing.output_size, [counts[clip] for clip in media.transcripts.clips])
    if speech is not None:
        if config.talker is None:
            raise ValueError("speech, but no Talker")
        rows = _row(speech.id_lengths)
        found["thinker"] += _blocks(config.thinker, sum(rows), _causal(rows), 3, config.talker.thinker_layer)
        found["talker"] = talker_flops(config.talker, width, speech)
    return found


def thinker_flops(config: ThinkerConfig, lengths: Sequence[int], logits: int = 0) -> Flops:
    """The Thinker's.

    Args:
        config: sizes.
        lengths: tokens of each document; a token attends to itself and those before it in its own.
        logits: positions whose logits are computed.
    """
    head = Flops(2 * logits * config.hidden_size * config.vocab_size)
    return _blocks(config, sum(lengths), _causal(lengths), matrices=3) + head


def talker_flops(config: TalkerConfig, thinker_size: int, speech: SpeechBatch) -> Flops:
    """The Talker's, with what fills its rows; convolutions over the text are sums, not products.

    Args:
        config: sizes.
        thinker_size: width of the states it reads.
        speech: the sentences.
    """
    gap = (config.text_kernel - 1) // 2
    units = row_length(sum(speech.unit_lengths) + gap * len(speech.unit_lengths))
    C, D, V, K = config.text_size, config.hidden_size, config.codebook_size, config.num_codebooks
    text = sum(speech.id_lengths) * thinker_size * C + units * (config.text_layers * 8 * C * C + C * D)
    steps = _row([count + config.flush for count in speech.frames])
    if config.pattern == "depth":
        P = config.depth_size
        codes = D * P + K * (2 * P * config.depth_intermediate + P * V)
    else:
        codes = K * D * V
    heads = sum(steps) * (codes + D * config.num_moves)
    return Flops(2 * (text + heads)) + _blocks(config.backbone, sum(steps), _causal(steps), matrices=3)


def vision_flops(config: VisionEncoderConfig, grids: Sequence[Grid]) -> Flops:
    """The vision encoder's, for pictures of these grids in patches; with what fills their row."""
    row = vision.lay_out(grids, config.pixel_shuffle_factor)
    length = row.positions.shape[1]
    first = 2 * length * 3 * config.patch_size**2 * config.hidden_size
    pairs = sum(n * n for n in row.segments.lengths)
    matrices = 2 if isinstance(config, SiglipConfig) else 3
    return Flops(first, leaves=first) + _blocks(config, length, pairs, matrices)


def audio_flops(config: AudioEncoderConfig, frames: Sequence[int]) -> Flops:
    """The audio encoder's, for clips of so many frames; with what stands between chunks, or Whisper's padding."""
    width, bins = config.hidden_size, config.num_mel_bins
    if isinstance(config, WhisperConfig):
        windows = sum(-(-count // whisper.FRAMES) for count in frames)
        states = whisper.FRAMES // 2
        first = 2 * 3 * windows * whisper.FRAMES * bins * width
        second = 2 * 3 * windows * states * width * width
        convolutions = Flops(first + second, leaves=first)
        return convolutions + _blocks(config, windows * states, windows * states**2, matrices=2)
    row = audio.lay_out(frames, config.chunk_tokens)
    length = len(row.frames)
    first = 2 * 3 * (length // 2) * bins * width
    others = 2 * 3 * (length // 4 + length // 8) * width * width
    pairs = sum(n * n for n in row.segments.lengths)
    return Flops(first + others, leaves=first) + _blocks(config, len(row.tokens), pairs, matrices=3)


def projector_flops(in_size: int, out_size: int, tokens: int) -> Flops:
    """A projector's, for so many tokens of the Thinker, with what fills their row."""
    return Flops(2 * row_length(tokens) * out_size * (in_size + out_size))


def ctc_flops(width: int, tokens: Sequence[int]) -> Flops:
    """The CTC head's, for clips of so many tokens; it computes all clips as long as the longest."""
    return Flops(2 * row_length(len(tokens) * max(tokens)) * width * CTC_STEPS * CLASSES)


def contrastive_flops(image_size: int, text_size: int, size: int, pictures: int, captions: int) -> Flops:
    """The contrastive head's.

    Args:
        image_size: width of the encoder's tokens.
        text_size: width of the Thinker's embedding, which gets no gradient from here.
        size: of the shared space.
        pictures: how many.
        captions: how many.
    """
    pictures, captions = row_length(pictures), row_length(captions)
    embedding = 2 * captions * text_size * size
    others = 2 * pictures * image_size * size + 2 * captions * size * size + 2 * captions * captions * size
    return Flops(embedding + others, leaves=embedding)


def _row(lengths: Sequence[int]) -> list[int]:
    """Lengths of these documents and of those that fill their row."""
    bounds = filled([0, *accumulate(lengths)])
    return [end - begin for begin, end in pairwise(bounds)]


def _causal(lengths: Sequence[int]) -> int:
    """Pairs of a token and one that it sees: itself, and those before it in its document."""
    return sum(n * (n + 1) // 2 for n in lengths)


def _blocks(config: "_Sizes", tokens: int, pairs: int, matrices: int, layers: int | None = None) -> Flops:
    """Transformer blocks.

    Args:
        config: sizes.
        tokens: N.
        pairs: of a query and a key that it sees.
        matrices: of the MLP: 3 in SwiGLU, 2 where an activation stands between two.
        layers: how many blocks; None for all.
    """
    layers = config.num_hidden_layers if layers is None else layers
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim if isinstance(config, ThinkerConfig) else queries
    projections = config.hidden_size * (2 * queries + 2 * keys)
    weights = 2 * tokens * (projections + matrices * config.hidden_size * config.intermediate_size)
    return Flops(layers * weights, layers * 2 * 2 * pairs * queries)


_Sizes = ThinkerConfig | VisionEncoderConfig | AudioEncoderConfig
