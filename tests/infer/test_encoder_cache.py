"""Pictures and sounds in the engine: any schedule, any chunks and any prefix give the tokens of one prompt alone.

Embeddings are random here: where they come from is another matter. Class *exact* for tokens in fp32.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config import OmniConfig, ThinkerConfig
from muomni.data.text.chat import EncodedChat
from muomni.data.text.content_parts import MediaPart
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams, generate
from muomni.infer.encoder_cache import Encoded, prompt_media
from muomni.infer.prompt_media import PromptMedia
from muomni.model import OmniModel, SlotCache

CONTEXT = 96
GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> OmniModel:
    thinker = ThinkerConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(0)).eval()


@dataclass(frozen=True)
class Piece:
    """Text of `size` tokens, or a medium with the content `seed`."""

    kind: str
    seed: int
    size: int = 5
    grid: tuple[int, int] = (2, 3)


def medium(piece: Piece) -> Encoded:
    grid = piece.grid if piece.kind != "audio" else None
    count = grid[0] * grid[1] if grid else piece.size
    features = torch.randn(count, 24, generator=torch.Generator().manual_seed(piece.seed))
    return Encoded(features, grid, f"{piece.kind == 'audio'} {piece.seed} {grid}".encode())


def prompt_of(pieces: list[Piece]) -> tuple[list[int], PromptMedia | None]:
    """A prompt as the API makes it: 38 is the placeholder of pictures, 39 that of sounds."""
    ids: list[int] = [1]
    parts: list[MediaPart] = []
    media: list[Encoded] = []
    places: list[int] = []
    for piece in pieces:
        if piece.kind == "text":
            source = random.Random(piece.seed)
            ids += [source.randrange(38) for _ in range(piece.size)]
            continue
        frames = 2 if piece.kind == "video" else 1
        for frame in range(frames):
            places.append(len(ids))
            ids.append(39 if piece.kind == "audio" else 38)
            parts.append(MediaPart("audio" if piece.kind == "audio" else "image", b"", None, frame))
            media.append(medium(piece))
    if not media:
        return ids, None
    return prompt_media(EncodedChat(ids, [False] * len(ids), tuple(parts), tuple(places)), media)


def alone(model: OmniModel, pieces: list[Piece], params: SamplingParams = GREEDY) -> list[int]:
    """The oracle: one prompt, from the first token on at each step."""
    ids, media = prompt_of(pieces)
    return generate(model, torch.tensor([ids]), params, use_cache=False, media=media)[0].tolist()


def request(pieces: list[Piece], params: SamplingParams = GREEDY, **options: Any) -> Request:
    ids, media = prompt_of(pieces)
    return Request(prompt=ids, params=params, limit=params.max_new_tokens, media=media, **options)


def new_engine(model: OmniModel, slots: int = 3, runner: Any = EagerRunner, **options: Any) -> Engine:
    cache = SlotCache(model.config.thinker, slots, CONTEXT)
    cache.keys.fill_(float("nan")), cache.values.fill_(float("nan"))  # what is read before it is written is found
    return Engine(model, cache, Runners(runner(model, cache)), **options)


class Other(EagerRunner):
    """Stands for a runner that knows tokens only, such as the native one: media must not come here."""

    batch_invariant = True

    def forward(self, *batch: Any) -> Any:
        assert len(batch) == 4
        return super().forward(*batch)


TEXT, PICTURE, SOUND, VIDEO = (Piece(kind, 1) for kind in ("text", "image", "audio", "video"))
pieces = st.builds(
    Piece,
    st.sampled_from(["text", "text", "image", "audio", "video"]),
    st.integers(0, 2),
    st.sampled_from([1, 5, 17]),
    st.sampled_from([(1, 1), (2, 3), (3, 2)]),
)
prompts = st.lists(pieces, min_size=1, max_size=4)
params = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 8),
    temperature=st.sampled_from([0, 0, 1.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 99),
)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(prompts, params, st.booleans(), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from([3, 16, 512]),
    st.sampled_from([EagerRunner, Other]),
)
def test_any_schedule_gives_the_tokens_of_one_prompt_alone(
    model: OmniModel,
    asked: list[tuple[list[Piece], SamplingParams, bool, int]],
    slots: int,
    chunk: int,
    runner: Any,
) -> None:
    engine = new_engine(model, slots, runner, chunk=chunk, chunk_alone=chunk)
    requests = []
    for prompt, chosen, batch_invariant, steps in asked:
        requests.append(engine.submit(request(prompt, chosen, batch_invariant=batch_invariant)))
        for _ in range(steps):
            engine.step()
    for one, (prompt, chosen, _, _) in zip(requests, asked, strict=True):
        assert engine.finish(one).tokens == alone(model, prompt, chosen)


@pytest.mark.parametrize("chunk", range(1, 12))
def test_a_chunk_may_end_inside_a_picture(model: OmniModel, chunk: int) -> None:
    prompt = [TEXT, PICTURE, SOUND, VIDEO, TEXT]
    engine = new_engine(model, chunk=chunk, chunk_alone=chunk)
    assert engine.finish(engine.submit(request(prompt))).tokens == alone(model, prompt)


def test_content_shape_and_order_of_media_matter(model: OmniModel) -> None:
    one, two = (Piece("image", seed) for seed in (1, 2))
    other_shape = Piece("image", 1, grid=(3, 2))
    logits = []
    for shown in ([one], [two], [other_shape], [one, two], [two, one]):
        ids, media = prompt_of([TEXT, *shown])
        assert media is not None
        cache = SlotCache(model.config.thinker, 1, CONTEXT)
        batch = torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64), torch.arange(len(ids))
        with torch.no_grad():
            runner = EagerRunner(model, cache)
            logits.append(runner.forward(*batch, torch.tensor([len(ids) - 1]), media.chunk(0, len(ids)))[0])
    distances = torch.cdist(torch.stack(logits), torch.stack(logits)) + torch.eye(5)
    assert distances.min() > 1e-2


@pytest.mark.parametrize(
    ("first", "second", "reused"),
    [
        ([TEXT, PICTURE, TEXT], [TEXT, PICTURE, TEXT], 16),  # all but the last token
        ([TEXT, PICTURE, Piece("text", 1, 20)], [TEXT, PICTURE, Piece("text", 1, 10)], 21),
        ([TEXT, PICTURE, TEXT], [TEXT, Piece("image", 2), TEXT], 0),
        ([Piece("text", 1, 17), PICTURE], [Piece("text", 1, 17), Piece("image", 2), TEXT], 18),  # up to the picture
        ([Piece("text", 1, 17), PICTURE], [Piece("text", 1, 17), Piece("image", 1, grid=(3, 2)), TEXT], 18),
        ([Piece("text", 1, 17), SOUND], [Piece("text", 1, 17), Piece("audio", 2), TEXT], 18),
        ([Piece("text", 1, 17), VIDEO], [Piece("text", 1, 17), PICTURE, PICTURE], 24),  # frames share their origin
        ([PICTURE, Piece("text", 1, 17)], [TEXT, PICTURE, Piece("text", 1, 17)], 0),
    ],
)
@pytest.mark.parametrize("runner", [EagerRunner, Other])
def test_a_prefix_is_reused_up_to_the_first_medium_that_differs(
    model: OmniModel, first: list[Piece], second: list[Piece], reused: int, runner: Any
) -> None:
    engine = new_engine(model, runner=runner)
    engine.finish(engine.submit(request(first)))
    one = engine.finish(engine.submit(request(second)))
    assert (one.reused, one.tokens) == (reused, alone(model, second))


def test_a_reply_is_reused_with_the_picture_it_is_about(model: OmniModel) -> None:
    engine = new_engine(model)
    first = engine.finish(engine.submit(request([TEXT, PICTURE, TEXT])))
    ids, media = prompt_of([TEXT, PICTURE, TEXT])
    assert media is not None
    longer = [*ids, *first.tokens, 5, 6]
    positions = torch.from_numpy(np.tile(np.arange(len(longer)), (3, 1)))
    positions[:, : len(ids)] = media.positions
    whole = PromptMedia(media.features, media.places, positions, [*media.keys, *longer[len(ids) :]])
    again = engine.submit(Request(prompt=longer, params=GREEDY, limit=8, media=whole))
    assert engine.finish(again).reused == len(ids) + len(first.tokens) - 1
    expected = generate(model, torch.tensor([longer]), GREEDY, use_cache=False, media=whole)[0].tolist()
    assert again.tokens == expected
    assert generate(model, torch.tensor([longer]), GREEDY, media=whole)[0].tolist() == expected


def test_what_fails_with_one_picture_ends_that_request_alone(model: OmniModel) -> None:
    engine = new_engine(model)
    bad = request([TEXT, PICTURE])
    assert bad.media is not None
    wrong = PromptMedia(bad.media.features[:, :7], bad.media.places, bad.media.positions, bad.media.keys)
    asked = [request([PICTURE, TEXT]), request([TEXT, PICTURE], row=1), request([TEXT])]
    asked[1].media = wrong
    for one in asked:
        engine.submit(one)
    assert engine.finish(asked[0]).tokens == alone(model, [PICTURE, TEXT])
    assert engine.finish(asked[2]).tokens == alone(model, [TEXT])
    with pytest.raises(ValueError, match="features of width 7 cannot stand between embeddings"):
        engine.finish(asked[1])
