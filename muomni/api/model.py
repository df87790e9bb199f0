"""`MuOmni`, the whole public interface: the model, its tokenizer, and what one does with them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args, overload

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from muomni.accel import activation_checkpointing
from muomni.accel.device import pick_device
from muomni.accel.int8 import KeepFloat, QuantizationReport, quantize, tune
from muomni.api.presets import new_config
from muomni.api.speech import Speak, SpeakingModel, check_how
from muomni.config import AudioConfig, OmniConfig, VisionConfig
from muomni.config.model import PresetName
from muomni.data.text.chat import expand
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import ConfigError, PromptError, UserError
from muomni.files import atomic_folder, write_json
from muomni.formats.gguf import GgufDtype
from muomni.formats.hub import MODEL_CARD, download
from muomni.formats.pretrained import check_replaceable, load_model, save_model
from muomni.formats.qwen3 import to_qwen3_config
from muomni.formats.tensors import CONFIG, resolve_folder
from muomni.infer import Engine, Reply, SamplingParams, TextStream, generate
from muomni.infer.encoder_cache import EncoderCache
from muomni.infer.engine.engine_cache import EngineCache
from muomni.infer.limits import token_budget
from muomni.infer.offline import generate_all, generate_ids, progress_bar
from muomni.infer.preprocess import prepare, read_prompt, settings_of
from muomni.infer.request import EngineInput
from muomni.infer.speculative.draft_model import Drafter, check_same_tokens
from muomni.infer.speculative.drafts import check_guessable
from muomni.infer.speech import SpokenStream, TextSpeech

# Rows of one call that are computed together, where nothing else is said.
_SIDE_BY_SIDE = 32

CacheDtype = Literal["auto", "int8"]
Message = Mapping[str, Any]
# A text, the parts of one message, or the messages of a conversation. A part is a text, a picture (PIL, path, bytes),
# a sound (path, bytes, (samples, rate)) or {"type": ..., ...}, ours or OpenAI's; a video is a list of pictures there.
Prompt = str | Sequence[Message] | Sequence[Any]


class MuOmni(SpeakingModel, PyTorchModelHubMixin, library_name="muomni", model_card_template=MODEL_CARD):
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
        super().__init__(config, generator, tokenizer)
        self._session = EngineCache()
        self._cache_dtype: CacheDtype = "auto"
        self._media = EncoderCache()

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
            vision, audio: with a preset: make it see and hear. True takes the encoder that goes with the preset.
            tokenizer: may also be set later, as `model.tokenizer`.
            device: `auto`, `cuda`, `mps` or `cpu`.
            seed: of the weights; None draws new ones each time.

        Raises:
            ConfigError: no such preset or device.
        """
        if isinstance(config, str):
            if config not in get_args(PresetName):
                raise ConfigError(f"no preset {config!r}: there are {', '.join(get_args(PresetName))}")
            config = new_config(cast(PresetName, config), vision, audio, tokenizer)
        elif vision or audio:
            raise ConfigError("vision and audio go with a preset's name; a whole configuration says it by itself")
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return cls(config, generator, tokenizer).to(pick_device(device))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin takes options for its own way of loading
        cls,
        name_or_path: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        int8: bool = False,
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
            revision, token, cache_dir, local_files_only: for a model on the Hub, as `snapshot_download` has them.

        Raises:
            UserError: nothing of that name; says where was looked.
            CheckpointError: the folder is there but does not load.
        """
        place = pick_device(device)
        path = Path(name_or_path).expanduser()
        if not path.exists():
            hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            path = download(str(name_or_path), hub)
        folder = resolve_folder(path)
        model = cast(Self, load_model(folder, dtype=dtype, device=place, int8=int8, make=cls))
        if model.is_quantized:
            tune(model)
        if (folder / "tokenizer.json").is_file():
            model.tokenizer = Tokenizer.load(folder)
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
        target = Path(save_directory).expanduser().resolve()
        check_replaceable(target)
        with atomic_folder(target) as folder:
            url = super().save_pretrained(folder, **{"repo_id": target.name, **options})
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save(save_directory)

    def export_hf(self, out: str | Path) -> None:
        """Writes a Qwen3 folder for `transformers`, vLLM and llama.cpp's converter; whole or not at all.

        Raises:
            UserError: the folder holds other files.
            CheckpointError: it cannot be written.
        """
        target = Path(out).expanduser().resolve()
        check_replaceable(target)
        with atomic_folder(target) as folder:
            save_model(self, folder, qwen3=True)
            if ends := self.end_ids():
                # A model that leaves its ends to the tokenizer says them here: others read them in these files.
                config = self.config.replace(eos_token_ids=ends)
                write_json(folder / CONFIG, to_qwen3_config(config, str(self.dtype).removeprefix("torch.")))
                generation = {"eos_token_id": list(ends), "pad_token_id": ends[-1]}
                write_json(folder / "generation_config.json", generation)
            if self.tokenizer is not None:
                self.tokenizer.save(folder)

    def export_gguf(self, out: str | Path, dtype: GgufDtype = "f32", each: Callable[[str], None] | None = None) -> None:
        """Writes a GGUF file, tokenizer and chat template included, for llama.cpp; whole or not at all.

        Args:
            out: the file; one that is there is replaced.
            dtype: of the matrices: `f32`, `f16`, `bf16` or `q8_0` (int8 in blocks of 32).
            each: called with the name of each tensor before its turn.

        Raises:
            ConfigError: no such dtype.
            UserError: the `gguf` package is missing, or the dtype cannot hold the weights.
            DataError: llama.cpp has no tokenizer that cuts text as this one does.
            CheckpointError: the file cannot be written.
        """
        from muomni.formats.gguf_tokenizer import save_gguf

        tokenizer = None if self.tokenizer is None else self._tokenizer()
        save_gguf(self, tokenizer, self.end_ids(), Path(out).expanduser().resolve(), dtype, each)

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
            SpeechError: the reply cannot be spoken. Where its text is wanted then, take `stream` or `chat_batch`.
        """
        settings = self._asked_speech(speak, sampling.get("seed"))
        how: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": speculate, **sampling}
        reply: Reply = self.stream(prompt, **how).finish()
        if settings is None:
            return reply
        return self._spoken([reply], [settings], on_error="raise")[0]

    def complete(
        self, text: str, *, batch_invariant: bool = False, speculate: "bool | MuOmni" = False, **sampling: Any
    ) -> Reply:
        """Continues a text as it stands, without the turns of a chat; otherwise as `chat`."""
        how: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": speculate, **sampling}
        reply: Reply = self.stream(text, raw=True, **how).finish()
        return reply

    @overload
    def stream(
        self,
        prompt: Prompt,
        *,
        speak: Literal[False] = False,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        **sampling: Any,
    ) -> TextStream: ...
    @overload
    def stream(
        self,
        prompt: Prompt,
        *,
        speak: Speak,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        **sampling: Any,
    ) -> TextStream | SpokenStream: ...
    def stream(
        self,
        prompt: Prompt,
        *,
        speak: Speak = False,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        **sampling: Any,
    ) -> TextStream | SpokenStream:
        """As `chat`, or with `raw` as `complete`, but gives the pieces of the reply as they come.

        With `speak` it is spoken while it is written: pieces of sound come between those of text.

        Returns:
            An iterator over `Piece`; after the last one its `reply` is the whole `Reply`.
        """
        params = SamplingParams.of(**sampling)
        if speculate is not False:
            check_guessable(params)
        tokenizer = self._tokenizer()
        settings = self._asked_speech(speak, params.seed)
        speech = None if settings is None else TextSpeech(self, tokenizer, self._speech, settings)
        asked = self.prepare([(prompt, params)], [""], raw=raw, alone=batch_invariant)[0]
        engine = self.engine(1, len(asked.ids) + token_budget(self, (1, len(asked.ids)), params))
        guesser = self.guesser(speculate, engine)
        how: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": guesser, "media": asked.media}
        text = TextStream(engine, tokenizer, asked.ids, params, self.end_ids(), **how)
        return text if speech is None else SpokenStream(text, speech)

    def chat_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: Sequence[Mapping[str, Any]] | None = None,
        speak: Speak = False,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | MuOmni" = False,
        batch_size: int = _SIDE_BY_SIDE,
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
        tokenizer = self._tokenizer()
        params = settings_of(prompts, sampling, settings, guessed=speculate is not False)
        check_how(on_error, batch_size)
        voices = [self._asked_speech(speak, one.seed) for one in params]
        names = [f"prompt {number} of {len(prompts)}" for number in range(1, len(prompts) + 1)]
        pairs = list(zip(prompts, params, strict=True))
        asked = self.prepare(pairs, names, raw=raw, alone=batch_invariant, keep_going=on_error == "reply")
        lengths = [
            len(one.ids) + token_budget(self, (1, len(one.ids)), one.params) for one in asked if one.error is None
        ]
        if not lengths:
            return [Reply.failed(str(one.error)) for one in asked]
        longest = max(lengths)
        engine = self.engine(min(batch_size, len(asked)), longest)
        how: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": self.guesser(speculate, engine)}
        replies = generate_all(engine, tokenizer, asked, end_ids=self.end_ids(), **how)
        written = list(progress_bar(replies, len(asked), progress))
        spoken = [settings for settings in voices if settings is not None]
        return self._spoken(written, spoken, on_error=on_error, batch_size=batch_size) if spoken else written

    def engine(self, slots: int, capacity: int) -> Engine:
        """The engine that `chat` and the others compute with; kept while the weights stay and it is large enough.

        Args:
            slots: requests side by side; fewer where memory asks for it.
            capacity: tokens of the longest request, prompt and reply.

        Raises:
            EngineError: the memory does not hold one slot.
        """
        return self._session.engine(self, slots, capacity, torch.int8 if self._cache_dtype == "int8" else None)

    @property
    def cache_dtype(self) -> CacheDtype:
        """Of the KV cache of `chat` and the others: `auto` is the model's, `int8` a third to a quarter of its memory.

        Set it at any time; the next call makes a new cache. The native runner has no int8 cache, so torch's modules
        compute the steps then. `generate(use_cache=False)` has no cache.

        Raises:
            ConfigError: when set to anything else.
        """
        return self._cache_dtype

    @cache_dtype.setter
    def cache_dtype(self, value: CacheDtype) -> None:
        if value not in get_args(CacheDtype):
            raise ConfigError(f"cache_dtype = {value!r}: there are {', '.join(get_args(CacheDtype))}")
        self._cache_dtype = value

    def prepare(
        self, asked: Sequence[tuple[Prompt, SamplingParams]], names: Sequence[str], **how: Any
    ) -> list[EngineInput]:
        """Prompts as the engine takes them, with their media encoded; see `infer.preprocess`."""
        return prepare(self, self._tokenizer(), self._media, asked, names, **how)

    def guesser(self, speculate: "bool | MuOmni", engine: Engine) -> "bool | Drafter":
        """What `speculate` means to the requests of `engine`: a smaller model's cache is made, and kept by it.

        Raises:
            UserError: the smaller model has other tokens.
            EngineError: the memory does not hold its cache.
        """
        if isinstance(speculate, bool):
            return speculate
        if not isinstance(speculate, MuOmni):
            raise UserError(f"speculate = {speculate!r}: must be True, False or a smaller model (MuOmni)")
        check_same_tokens((self, speculate), (self.tokenizer, speculate.tokenizer))
        return speculate._session.drafter(speculate, engine.cache.slots, engine.cache.capacity)

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
        if ids.is_floating_point() or (ids.numel() and bool(((ids < 0) | (ids >= V)).any())):
            raise PromptError(f"token ids must be whole numbers from 0 to {V - 1}, the model's vocabulary")
        if not use_cache:
            ids = ids.to(self.device, torch.int64)
            return generate(self, ids, params, end_ids=self.end_ids(), use_cache=False)
        total = token_budget(self, ids.shape, params) + ids.shape[-1]
        return generate_ids(self.engine(min(ids.shape[0], _SIDE_BY_SIDE), total), ids, params, self.end_ids())

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids the model reads for a prompt: in the chat's turns, or with `raw` the text itself.

        A picture or sound has a placeholder for each of its tokens.

        Raises:
            PromptError: the prompt is empty, not in the form of messages, or holds what the model does not take.
            MediaError: a picture or sound that cannot be read.
        """
        chat = read_prompt(self, self._tokenizer(), prompt, raw=raw)
        return expand(chat, self._media.counts(self, chat.media)).ids

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

    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the configuration's, else the tokenizer's ends of a turn and of a document."""
        if self.config.eos_token_ids or self.tokenizer is None:
            return self.config.eos_token_ids
        return self.tokenizer.end_ids
