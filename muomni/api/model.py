"""`MuOmni`, the whole public interface: the model, its tokenizer, and what one does with them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from muomni.accel import activation_checkpointing
from muomni.accel.device import pick_device
from muomni.accel.int8 import KeepFloat, QuantizationReport, quantize, tune
from muomni.api import export
from muomni.api.presets import new_config
from muomni.config import AudioConfig, OmniConfig, VisionConfig
from muomni.data.media.audio import Sound
from muomni.data.text.chat import expand
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import PromptError, UserError
from muomni.files import atomic_folder, exists, user_path
from muomni.formats.gguf import GgufDtype
from muomni.formats.hub import MODEL_CARD, download
from muomni.formats.pretrained import check_replaceable, load_model, save_model
from muomni.formats.tensors import resolve_folder
from muomni.infer import Chunk, Reply, RunnerName, SamplingParams, TextStream, generate
from muomni.infer.offline import generate_ids, show_progress
from muomni.infer.preprocess import check_batch, checked_tokenizer, end_ids, read_prompt, settings_of, token_budget
from muomni.infer.runtime import CacheDtype, Runtime
from muomni.infer.speech import Speech, SpeechSettings, SpokenStream, TextSpeech, speak_all, speak_pieces
from muomni.infer.speech.offline import Speak, add_speech, check_spoken, reply_speech, text_settings
from muomni.infer.streaming import ReplyStream
from muomni.infer.transcription import Transcriber, Transcript, transcripts
from muomni.model import OmniModel

# Prompts or sentences of one call that are computed side by side by default.
_BATCH_SIZE = 32

Message = Mapping[str, Any]
# A text, a picture or sound, the parts of one message, or the messages of a conversation. A part is a text, a picture
# (PIL, path, bytes), a sound (path, bytes, (samples, rate)) or {"type": ..., ...}, ours or OpenAI's; a video is a list
# of pictures there.
Prompt = str | Sequence[Message] | Sequence[Any]


class MuOmni(OmniModel, PyTorchModelHubMixin, library_name="muomni", model_card_template=MODEL_CARD):
    """A model with its tokenizer.

    It is an `nn.Module` of plain `nn.Linear`s: a user's own loop, `torch.autocast`, `torch.compile`,
    accelerate and PEFT work on it.

    From the Hub's mixin come the model card and `push_to_hub`. Reading and writing are μOmni's own:
    the mixin writes into the folder in place, and does not know runs, Qwen3 folders or tokenizers.

    Args:
        config: sizes; the weights are new.
        generator: source of the initial weights; None takes torch's default one.
        tokenizer: for everything that takes or gives text.
    """

    def __init__(
        self, config: OmniConfig, generator: torch.Generator | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(config, generator)
        self.tokenizer = tokenizer
        self.runtime = Runtime()

    @classmethod
    def from_config(
        cls,
        config: str | OmniConfig,
        *,
        vision: bool | VisionConfig = False,
        audio: bool | AudioConfig = False,
        tokenizer: Tokenizer | None = None,
        device: str = "auto",
        seed: int | None = None,
    ) -> Self:
        """A new model with random weights in fp32, in training mode.

        Args:
            config: a preset's name (`nano`, `tiny`, `small`, `base`) or a whole configuration.
            vision: with a preset: make it see. True takes the encoder that goes with the preset.
            audio: the same for hearing.
            tokenizer: may also be set later, as `model.tokenizer`.
            device: `auto`, `cuda`, `mps` or `cpu`.
            seed: of the weights; None takes torch's own generator.

        Raises:
            ConfigError: no such preset or device.
        """
        config = new_config(config, vision, audio, tokenizer)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return cls(config, generator, tokenizer).to(pick_device(device))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # noqa: PLR0913 - the mixin's own options are others; the Hub's
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        int8: bool = False,
        runner: RunnerName | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model, in evaluation mode.

        Args:
            name_or_path: a run folder (its best checkpoint, else its last), a checkpoint, a Hugging Face
                Qwen3 folder, or the name of a model on the Hugging Face Hub.
            device: `auto`, `cuda`, `mps` or `cpu`.
            dtype: of the weights in memory, or of what int8 layers compute; None keeps the file's.
            int8: quantise float weights while they are read, so that memory never holds them; see `quantize`.
            runner: computes the decoder steps; see the property `runner`.
            revision: of a model on the Hub; this and what follows as `snapshot_download` has them.
            token: for a private one.
            cache_dir: where it is kept.
            local_files_only: take what is kept, and ask nobody.

        Raises:
            UserError: nothing of that name; says where was looked.
            CheckpointError: the folder is there but does not load.
        """
        place = pick_device(device)
        path = user_path(name_or_path)
        if not exists(path):
            hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            path = download(str(name_or_path), hub)
        folder = resolve_folder(path)
        model = cast("Self", load_model(folder, dtype=dtype, device=place, int8=int8, make=cls))
        if model.is_quantized:
            tune(model)
        if (folder / "tokenizer.json").is_file():
            model.tokenizer = Tokenizer.load(folder)
        if runner is not None:
            model.runner = runner
        return model

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes config, weights, tokenizer, chat template and a model card; whole or not at all.

        Args:
            save_directory: a new folder, or one that holds nothing but a saved model, which is replaced.
            options: the mixin's `push_to_hub`, `repo_id`, `model_card_kwargs` and what goes with them.

        Returns:
            The commit's URL with `push_to_hub`, else None.

        Raises:
            UserError: the folder holds other files, which replacing it would remove.
            CheckpointError: the disk is full or the folder cannot be written.
        """
        target = user_path(save_directory).resolve()
        check_replaceable(target)
        with atomic_folder(target) as folder:
            return super().save_pretrained(folder, **{"repo_id": target.name, **options})

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save(save_directory)

    def export_hf(self, out: str | Path) -> None:
        """Writes a Qwen3 folder for `transformers`, vLLM and llama.cpp's converter; see `api.export`."""
        export.export_hf(self, self.tokenizer, out)

    def export_gguf(self, out: str | Path, dtype: GgufDtype = "f32", each: Callable[[str], None] | None = None) -> None:
        """Writes a GGUF file, tokenizer and chat template included, for llama.cpp; see `api.export`."""
        export.export_gguf(self, self.tokenizer and self._checked_tokenizer(), out, dtype, each)

    def chat(
        self,
        prompt: Prompt,
        *,
        speak: Speak = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        **sampling: Any,
    ) -> Reply:
        """Answers a prompt, or the last message of a conversation.

        Args:
            prompt: what the user says, as a text or a list of parts, such as `["What is this?", Image.open(path)]`, or
                messages such as `[{"role": "user", "content": "Hello"}]`, whose content may be a list of parts.
            speak: speak the reply too, all sentences side by side: `reply.audio`. True takes the usual settings,
                otherwise those of `say`, such as `{"voice": "anna"}`; without a seed the speech takes that of the text.
            batch_invariant: see `chat_batch`.
            speculate: guess tokens as long as that pays; the reply is the same. Only greedy replies can be guessed:
                `temperature=0`, no penalty. True guesses from the text so far, for replies that repeat much of the
                prompt; a smaller model of the same tokenizer guesses any text that it would write alike.
            sampling: fields of `SamplingParams`.

        Raises:
            PromptError: an empty or too long prompt, or a setting that is not allowed.
            MediaError: a picture or sound that cannot be read.
            UserError: the smaller model has other tokens, or the model does not speak.
            NonFiniteError: the model's weights, or what it computes with them, are NaN or infinite.
            SpeechError: the reply cannot be spoken. Where its text is wanted then, take `stream` or `chat_batch`.
        """
        settings = reply_speech(self, speak, sampling.get("seed"))
        reply = self._text(prompt, SamplingParams.of(**sampling), False, batch_invariant, speculate).finish()
        if settings is None:
            return reply
        speeches = self._speak([(reply.text, settings)])
        check_spoken(speeches)
        return add_speech(reply, speeches[0])

    def complete(
        self, text: str, *, batch_invariant: bool = False, speculate: "bool | MuOmni" = False, **sampling: Any
    ) -> Reply:
        """Continues a text as it stands, without the turns of a chat; otherwise as `chat`."""
        return self._text(text, SamplingParams.of(**sampling), True, batch_invariant, speculate).finish()

    def stream(
        self,
        prompt: Prompt,
        *,
        speak: Speak = False,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        **sampling: Any,
    ) -> ReplyStream:
        """As `chat`, or with `raw` as `complete`, but gives the pieces of the reply as they come.

        With `speak` it is spoken while it is written: chunks of sound come between those of text.

        Returns:
            An iterator over `Chunk`; after the last one its `reply` is the whole `Reply`.
        """
        params = SamplingParams.of(**sampling)
        settings = reply_speech(self, speak, params.seed)
        text = self._text(prompt, params, raw, batch_invariant, speculate)
        if settings is None:
            return text
        return SpokenStream(text, TextSpeech(self, self._checked_tokenizer(), self.runtime.speakers, settings))

    def chat_batch(  # noqa: PLR0913 - each is of use by itself
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: Sequence[Mapping[str, Any]] | None = None,
        speak: Speak = False,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        batch_size: int = _BATCH_SIZE,
        progress: bool | None = None,
        on_error: Literal["raise", "reply"] = "raise",
        **settings: Any,
    ) -> list[Reply]:
        """Answers many prompts side by side; what they show or play is encoded once, all of it together.

        In fp32 the replies are those of `chat`, token by token. In lower precision a reply can differ from that
        of `chat` after a while, as matrix products of other sizes round otherwise; `batch_invariant` rules that
        out where it matters more than speed.

        Args:
            prompts: of any kinds and lengths, each as `chat` takes it.
            sampling: settings of each prompt, which go before `settings`; None where all have the same.
            speak: see `chat`; once all replies are written, the sentences of all of them are spoken side by side.
            raw: continue each text as it stands, as `complete`.
            batch_invariant: compute so that no bit of a reply depends on the other prompts. Prompts are then cut
                at fixed places and not begun from one another's, and where the runner's result depends on the
                batch each is computed alone.
            speculate: see `chat`.
            batch_size: at most this many side by side; fewer where memory asks for it.
            progress: show a bar on standard error; None shows it in a terminal, once it has taken a second.
            on_error: what becomes of a prompt that is wrong, for example with a broken picture: `raise` answers none,
                `reply` answers the others and gives this one a reply with `finish_reason` "error" and its `error`. A
                reply that cannot be spoken keeps its text with `reply`.
            settings: fields of `SamplingParams` for all prompts. The same seed gives each prompt the reply that
                `chat` gives it with that seed.

        Returns:
            a reply to each prompt, in their order.

        Raises:
            PromptError, MediaError: naming the prompt that is wrong; nothing has been answered then. A setting that is
                wrong is always raised.
        """
        params = settings_of(prompts, sampling, settings, guessed=speculate is not False)
        check_batch(on_error, batch_size)
        voices = [reply_speech(self, speak, each.seed) for each in params]
        names = [f"prompt {number} of {len(prompts)}" for number in range(1, len(prompts) + 1)]
        pairs = list(zip(prompts, params, strict=True))
        options = {"raw": raw, "alone": batch_invariant, "keep_going": on_error == "reply"}
        inputs = self.runtime.prepare(self, self.tokenizer, pairs, names, **options)
        lengths = [each.length for each in inputs if each.error is None]
        if not lengths:
            return [Reply.failed(str(each.error)) for each in inputs]
        replies = self.runtime.answer(
            self,
            self.tokenizer,
            inputs,
            slots=min(batch_size, len(inputs)),
            capacity=max(lengths),
            batch_invariant=batch_invariant,
            speculate=speculate,
        )
        written = list(show_progress(replies, len(inputs), progress))
        spoken = [n for n, reply in enumerate(written) if not reply.error]
        texts = [(written[n].text, voice) for n in spoken if (voice := voices[n]) is not None]
        if texts:
            speeches = self._speak(texts, batch_size)
            if on_error == "raise":
                check_spoken(speeches)
            for n, speech in zip(spoken, speeches, strict=True):
                written[n] = add_speech(written[n], speech)
        return written

    def transcribe(
        self,
        sounds: Sequence[Sound],
        *,
        hint: str | None = None,
        batch_size: int = _BATCH_SIZE,
        progress: bool | None = None,
        on_error: Literal["raise", "reply"] = "raise",
        **sampling: Any,
    ) -> list[Transcript]:
        """Writes down what is said in sounds of up to four hours each.

        A sound that is longer than half a minute, or than the model's context allows, is cut where it is quiet; the
        pieces of all sounds are computed side by side.

        Args:
            sounds: each a path, bytes, or (samples, rate).
            hint: of the subject or of spellings, as a system message.
            batch_size: see `chat_batch`.
            progress: see `chat_batch`.
            on_error: what becomes of a sound that cannot be read: `raise` raises its error, `reply` gives it a
                transcript with its `error` and writes down the others.
            sampling: fields of `SamplingParams`; greedy unless given.

        Returns:
            a transcript of each sound, in their order.

        Raises:
            UserError: the model does not hear.
            PromptError: a setting that is not allowed.
            MediaError: a sound that cannot be read.
        """
        if isinstance(sounds, str | bytes | Path) or not isinstance(sounds, Sequence):
            raise PromptError(f"sounds must be a list, not {type(sounds).__name__}")
        check_batch(on_error, batch_size)
        transcriber = Transcriber(self, self._checked_tokenizer(), hint, **sampling)
        options: dict[str, Any] = {"batch_size": batch_size, "keep_going": on_error == "reply"}
        return list(transcripts(transcriber, self.runtime, sounds, progress=progress, **options))

    def say(self, text: str, **settings: Any) -> Speech:
        """Speaks a text, in one voice from its beginning to its end.

        The same seed gives the same speech. With int8 weights, or in less than fp32, it does so only where the same
        sentences are computed in the same way: `say_stream`, a reply that is spoken while it is written, and other
        texts or another `batch_size` in `say_batch` round otherwise, and one code that differs leads to other speech
        behind it, as good and with the same words. In fp32 all of them give the same codes.

        Args:
            text: what is said; marks of Markdown and emoji are left out, numbers are put into words.
            settings: fields of `SpeechSettings`, such as `voice`, `temperature` and `seed`.

        Raises:
            UserError: the model does not speak.
            PromptError: a setting that is not allowed.
            SpeechError: there is nothing to say, or the speech came to no end.
        """
        return self.say_batch([text], on_error="raise", **settings)[0]

    def say_batch(
        self,
        texts: Sequence[str],
        *,
        settings: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = _BATCH_SIZE,
        on_error: Literal["raise", "reply"] = "reply",
        **common: Any,
    ) -> list[Speech]:
        """Speaks many texts, their sentences side by side.

        In fp32 the speech is that of `say`, up to rounding; see there for int8.

        Args:
            texts: each as `say` takes it.
            settings: of each text, which go before `common`; None where all have the same.
            batch_size: at most this many sentences side by side.
            on_error: what becomes of a text that cannot be spoken: `reply` gives a `Speech` with its `error` in its
                place, `raise` raises the first error.
            common: fields of `SpeechSettings` for all texts. The same seed gives each text the speech that `say`
                gives it with that seed.

        Returns:
            the speech of each text, in their order.

        Raises:
            as `say`, for a text that cannot be spoken with `on_error="raise"` only.
        """
        each = text_settings(texts, settings, common)
        check_batch(on_error, batch_size)
        speeches = self._speak(list(zip(texts, each, strict=True)), batch_size)
        if on_error == "raise":
            check_spoken(speeches)
        return speeches

    def say_stream(self, text: str | Iterable[str], **settings: Any) -> Iterator[Chunk]:
        """As `say`, but gives the sound in chunks, the first ones small, as soon as they are computed.

        In fp32 the speech is that of `say`, up to rounding; see there for int8.

        Args:
            text: whole, or in pieces that still come, cut anywhere; what is said is the same.
            settings: as for `say`.

        Returns:
            An iterator over `Chunk`s with `audio`; leaving it early stops the speech.

        Raises:
            as `say`; a SpeechError after the chunks that could be spoken.
        """
        speech = TextSpeech(self, self._checked_tokenizer(), self.runtime.speakers, SpeechSettings.of(**settings))
        return speak_pieces(speech, [text] if isinstance(text, str) else text)

    def _speak(self, texts: Sequence[tuple[str, SpeechSettings]], batch_size: int = _BATCH_SIZE) -> list[Speech]:
        return speak_all(self, self._checked_tokenizer(), self.runtime.speakers, texts, batch_size=batch_size)

    def _text(
        self,
        prompt: Prompt,
        params: SamplingParams,
        raw: bool,
        batch_invariant: bool,
        speculate: "bool | MuOmni",
    ) -> TextStream:
        options: dict[str, Any] = {"raw": raw, "batch_invariant": batch_invariant, "speculate": speculate}
        return self.runtime.stream(self, self.tokenizer, (prompt, params), **options)

    def _checked_tokenizer(self) -> Tokenizer:
        return checked_tokenizer(self, self.tokenizer)

    @property
    def runner(self) -> RunnerName:
        """What computes the decoder steps of `chat`, `say` and the others: `auto`, `eager`, `native` or `compiled`.

        `auto` is the fastest that this machine has. Set it at any time; the next call makes a new cache. A named
        runner that cannot run this model here is an error of that call. The Talker has no `compiled` runner and then
        takes what `auto` takes.

        Raises:
            ConfigError: when set to anything else.
        """
        return self.runtime.runner

    @runner.setter
    def runner(self, value: RunnerName) -> None:
        self.runtime = Runtime(value, self.runtime.cache_dtype)

    @property
    def cache_dtype(self) -> CacheDtype:
        """Of the KV cache of `chat` and the others: `auto` is the model's, `int8` a third to a quarter of its memory.

        Set it at any time; the next call makes a new cache. The native runner has no int8 cache, so torch's modules
        compute the steps then. `generate(use_cache=False)` has no cache.

        Raises:
            ConfigError: when set to anything else.
        """
        return self.runtime.cache_dtype

    @cache_dtype.setter
    def cache_dtype(self, value: CacheDtype) -> None:
        self.runtime = Runtime(self.runtime.runner, value)

    def weights_changed(self) -> None:
        """Forgets what is kept between calls (keys and values of prompts, embeddings of media).

        Only needed after single weights were written to in a way that torch hides, such as `weight.data[3] = 0` or a
        numpy array that shares their memory. Everything else is seen: training, loading, adapters that are added or
        switched, hooks, and hidden writes to all of a tensor, as of an average of weights that is swapped in.
        """
        self.runtime = Runtime(self.runner, self.cache_dtype)

    def generate(self, ids: Tensor, *, use_cache: bool = True, **sampling: Any) -> Tensor:
        """Continues token ids.

        Args:
            ids: (B, T) int64, on any device.
            use_cache: False computes every step from the first token on with torch's modules, to compare with.
            sampling: fields of `SamplingParams`, but for `stop`.

        Returns:
            (B, N) int64 new tokens on the model's device; a row that ended is filled with an end token.

        Raises:
            PromptError: ids that are not the model's, no room in the context, or a setting that is not allowed.
        """
        params = SamplingParams.of(**sampling)
        V = self.config.thinker.vocab_size
        ends = end_ids(self, self.tokenizer)
        if ids.is_floating_point() or (ids.numel() and bool(((ids < 0) | (ids >= V)).any())):
            raise PromptError(f"token ids must be whole numbers from 0 to {V - 1}, the model's vocabulary")
        grammar = None
        if params.grammar is not None:
            grammar = self.runtime.grammars.compile(params.grammar, self._checked_tokenizer(), V, ends)
        if not use_cache:
            ids = ids.to(self.device, torch.int64)
            return generate(self, ids, params, end_ids=ends, use_cache=False, grammar=grammar)
        limit = token_budget(self, ids.shape, params)
        engine = self.runtime.engine(self, min(ids.shape[0], _BATCH_SIZE), ids.shape[1] + limit)
        return generate_ids(engine, ids, params, limit, ends, grammar)

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids the model reads for a prompt: in the chat's turns, or with `raw` the text itself.

        A picture or sound has a placeholder for each of its tokens.

        Raises:
            PromptError: the prompt is empty, not in the form of messages, or holds what the model does not take.
            MediaError: a picture or sound that cannot be read.
        """
        chat = read_prompt(self, self._checked_tokenizer(), prompt, raw=raw)
        return expand(chat, self.runtime.media.counts(self, chat.media)).ids

    def quantize(self, method: str = "int8", *, keep_float: KeepFloat = "never") -> QuantizationReport:
        """Gives the model int8 weights, in place: a quarter of the memory, faster decoding, no more training.

        Args:
            method: `"int8"`; see `accel.int8`.
            keep_float: `auto` lets layers whose shape is faster in float compute with float copies; see
                `accel.int8.tune`.

        Returns:
            Sizes, and the kernel chosen for each shape with its speed beside float's; `str` says it in words.

        Raises:
            ConfigError: no such method, or `keep_float` is neither `auto` nor `never`.
            UserError: the model is quantised already, or a weight is not finite.
        """
        return quantize(self, method, keep_float=keep_float)

    def gradient_checkpointing_enable(self, mode: activation_checkpointing.Mode = "full") -> None:
        """Recomputes each block in the backward pass instead of storing it; see `accel.activation_checkpointing`.

        Args:
            mode: `full` for least memory, `selective` to keep the results of attention and matrix products.

        Raises:
            ConfigError: no such mode.
            UserError: the model is quantised.
        """
        if self.is_quantized:
            raise UserError("gradient checkpointing is for training, and a quantised model cannot be trained")
        activation_checkpointing.enable(self, mode)

    def gradient_checkpointing_disable(self) -> None:
        """Undoes `gradient_checkpointing_enable`."""
        activation_checkpointing.disable(self)
