"""What every test may rely on: one thread, no network, its own cache, repeatable examples in CI."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from muomni import MuOmni
    from muomni.data.text.tokenizer import Tokenizer

# Read by torch and huggingface_hub when they are imported, so set before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Nothing that one test measures may decide what another one does.
os.environ["MUOMNI_IGNORE_MEASURED"] = "1"

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where there is no GPU; torch is only asked when there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; torch sees none"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token caches of tests go to a temporary folder, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUOMNI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _eager_runner() -> Iterator[None]:
    """What is tested with the native runner names it; elsewhere nothing waits for a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("muomni.infer.runners.select.DEFAULT_RUNNER", "eager")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data: `$MUOMNI_SHARED_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MUOMNI_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}; set MUOMNI_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def small_tokenizer() -> "Tokenizer":
    """Trained on a few sentences: common words are one token, an emoji is four."""
    from muomni.data.text.tokenizer import Tokenizer

    text = "The cat sat on the mat. The dog ate the bone, and then the dog slept. Hello there! What is this? "
    return Tokenizer.train([text] * 3, vocab_size=320)


@pytest.fixture(scope="session")
def omni(small_tokenizer: "Tokenizer") -> "MuOmni":
    """A nano model that sees and hears; random weights, large enough that replies depend on what is shown."""
    from muomni import MuOmni
    from muomni.config import encoder_configs, preset

    config = preset("nano")
    thinker = config.thinker.replace(vocab_size=small_tokenizer.vocab_size, initializer_range=0.3)
    vision, audio = encoder_configs("nano")
    tokens = {
        "image_token_id": small_tokenizer.id_of("<|image|>"),
        "audio_token_id": small_tokenizer.id_of("<|audio|>"),
    }
    config = config.replace(thinker=thinker).with_encoders(
        vision.replace(initializer_range=0.2, max_tokens=20), audio.replace(initializer_range=0.2), **tokens
    )
    return MuOmni.from_config(config, tokenizer=small_tokenizer, device="cpu", seed=0).eval()


@pytest.fixture(scope="session")
def nano_folder(small_tokenizer: "Tokenizer", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved nano model with random weights and the small tokenizer. Read it, do not write into it."""
    from muomni import MuOmni
    from muomni.config import preset

    config = preset("nano")
    thinker = config.thinker.replace(vocab_size=small_tokenizer.vocab_size, initializer_range=0.1)
    model = MuOmni.from_config(config.replace(thinker=thinker), tokenizer=small_tokenizer, device="cpu", seed=0)
    folder = tmp_path_factory.mktemp("models") / "nano"
    model.save_pretrained(folder)
    return folder
