"""What a model keeps between calls: its engine, so that a conversation's beginning is read once, and the like."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from muomni.errors import ConfigError, UserError
from muomni.infer.encoder_cache import EncoderCache
from muomni.infer.engine.engine import Engine, make_engine
from muomni.infer.offline import generate_all
from muomni.infer.preprocess import EngineInput, Reading, checked_tokenizer, prepare
from muomni.infer.runners.select import RunnerName, checked_runner
from muomni.infer.sampling import SamplingParams
from muomni.infer.speculative.draft_model import Drafter, check_same_tokens, make_drafter
from muomni.infer.speculative.drafts import check_guessable
from muomni.infer.speech.speaker import SpeakerPool
from muomni.infer.streaming import Reply, TextStream
from muomni.infer.structured import Grammars
from muomni.model import OmniModel
from muomni.model.module_modes import fingerprint

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

CacheDtype = Literal["auto", "int8"]
# Slots of a kept engine at least, for a few conversations side by side, and tokens of the shortest slot.
_FEWEST_SLOTS = 4
_SHORTEST = 256
# Whatever waits is in the caller's own lists: no bound is needed.
_MOST_WAITING = 1 << 30


class Runtime:
    """Makes engines, drafters and speakers; keeps them while what the model computes and the settings stay the same.

    Where the former cannot be known, nothing is kept; see `fingerprint`.

    Copies and pickles are new ones with the same settings: they belong to another model.

    Args:
        runner: computes the steps; see `make_runner`.
        cache_dtype: of the KV cache; see `MuOmni.cache_dtype`.

    Attributes:
        media: embeddings of pictures and sounds.
        grammars: that replies have to follow.
        speakers: of the Talker.
    """

    def __init__(self, runner: RunnerName | None = None, cache_dtype: CacheDtype = "auto") -> None:
        if cache_dtype not in get_args(CacheDtype):
            raise ConfigError(f"cache_dtype = {cache_dtype!r}: there are {', '.join(get_args(CacheDtype))}")
        self.runner = checked_runner(runner)
        self.cache_dtype = cache_dtype
        self.media = EncoderCache()
        self.grammars = Grammars()
        self.speakers = SpeakerPool(self.runner)
        self._lock = threading.Lock()
        # With the fingerprint of what each was made for.
        self._engine: tuple[Engine, tuple[object, ...] | None] | None = None
        self._slots = 0
        self._drafter: tuple[Drafter, tuple[object, ...] | None] | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> "Runtime":
        return Runtime(self.runner, self.cache_dtype)

    def __reduce__(self) -> tuple[type["Runtime"], tuple[RunnerName, CacheDtype]]:
        return Runtime, (self.runner, self.cache_dtype)

    def engine(self, model: OmniModel, slots: int, capacity: int) -> Engine:
        """An engine with at least `capacity` tokens a slot, and `slots` of them where memory allows.

        Args:
            model: whose weights may have changed since.
            slots: requests to be computed side by side.
            capacity: tokens of the longest request, prompt and reply.

        Raises:
            EngineError: the memory does not hold one slot.
        """
        with self._lock:
            key = fingerprint([model.thinker], model.device, model.dtype)
            kept, old = self._engine or (None, None)
            enough = kept is not None and self._slots >= slots and kept.cache.capacity >= capacity
            if kept is not None and enough and key is not None and key == old:
                return kept
            self._engine = kept = None  # its cache is freed before the next one is made
            self._slots = max(slots, _FEWEST_SLOTS)
            rounded = max(_SHORTEST, 1 << (capacity - 1).bit_length())
            engine = make_engine(
                model,
                slots=self._slots,
                capacity=min(rounded, max(capacity, model.config.thinker.max_position_embeddings)),
                dtype=torch.int8 if self.cache_dtype == "int8" else None,
                most_waiting=_MOST_WAITING,
                runner=self.runner,
            )
            self._engine = engine, key
            return engine

    def drafter(self, model: OmniModel, slots: int, capacity: int) -> Drafter:
        """A drafter for an engine of this size; requests that have begun keep the one they began with.

        Args:
            model: the smaller one, whose weights may have changed since.
            slots: see `make_drafter`.
            capacity: see `make_drafter`.

        Raises:
            EngineError: the memory does not hold one slot.
        """
        with self._lock:
            key = fingerprint([model.thinker], slots, capacity, model.dtype, model.device)
            if self._drafter is None or key is None or key != self._drafter[1]:
                self._drafter = None  # as above
                self._drafter = make_drafter(model, slots, capacity, runner=self.runner), key
            return self._drafter[0]

    def prepare(
        self,
        model: OmniModel,
        tokenizer: "Tokenizer | None",
        prompts: Iterable[tuple[Any, SamplingParams]],
        names: Sequence[str] = ("",),
        **options: Any,
    ) -> list[EngineInput]:
        """The engine's inputs; see `infer.preprocess.prepare`, and `Reading` for the options."""
        reading = Reading(grammars=self.grammars, **options)
        return prepare(model, checked_tokenizer(model, tokenizer), self.media, prompts, names, reading)

    def stream(
        self,
        model: OmniModel,
        tokenizer: "Tokenizer | None",
        prompt: tuple[Any, SamplingParams],
        *,
        raw: bool = False,
        batch_invariant: bool = False,
        speculate: "bool | OmniModel" = False,
    ) -> TextStream:
        """The reply to one prompt as a stream.

        Args:
            model: answers.
            tokenizer: of the model.
            prompt: with its settings.
            raw: see `MuOmni.chat_batch`.
            batch_invariant: see `MuOmni.chat_batch`.
            speculate: draft from the text so far, or by a smaller `MuOmni`.
        """
        tokenizer = checked_tokenizer(model, tokenizer)
        if speculate is not False:
            check_guessable(prompt[1])
        prepared = self.prepare(model, tokenizer, [prompt], raw=raw, alone=batch_invariant)[0]
        engine = self.engine(model, 1, prepared.length)
        drafter = _drafter(model, tokenizer, speculate, engine)
        return TextStream(engine, tokenizer, prepared, batch_invariant=batch_invariant, speculate=drafter)

    def answer(
        self,
        model: OmniModel,
        tokenizer: "Tokenizer | None",
        inputs: Iterable[EngineInput],
        *,
        slots: int,
        capacity: int,
        batch_invariant: bool = False,
        speculate: "bool | OmniModel" = False,
        keep_going: bool = False,
    ) -> Iterator[Reply]:
        """The replies to any number of prompts; see `infer.offline.generate_all`, and `engine` and `stream` here."""
        tokenizer = checked_tokenizer(model, tokenizer)
        engine = self.engine(model, slots, capacity)
        drafter = _drafter(model, tokenizer, speculate, engine)
        options: dict[str, Any] = {"batch_invariant": batch_invariant, "speculate": drafter, "keep_going": keep_going}
        return generate_all(engine, tokenizer, inputs, **options)


def _drafter(model: OmniModel, tokenizer: "Tokenizer", speculate: "bool | OmniModel", engine: Engine) -> bool | Drafter:
    """The `speculate` of the engine's requests.

    Raises:
        UserError: `speculate` is neither a bool nor a `MuOmni`, or the smaller model has other tokens.
        EngineError: the memory does not hold its cache.
    """
    if isinstance(speculate, bool):
        return speculate
    runtime = getattr(speculate, "runtime", None)
    if not isinstance(runtime, Runtime):
        raise UserError(f"speculate = {speculate!r}: must be True, False or a smaller model (MuOmni)")
    check_same_tokens((model, speculate), (tokenizer, getattr(speculate, "tokenizer", None)))
    return runtime.drafter(speculate, engine.cache.slots, engine.cache.capacity)
