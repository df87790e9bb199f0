"""`--int8`: a chat makes float weights int8 while they are read."""

from pathlib import Path
from typing import Any

import pytest

from muomni import MuOmni
from muomni.cli import main


def test_a_chat_and_generate_answer_with_int8_weights(
    nano_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    before = MuOmni.from_pretrained
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    model.quantize()
    model.save_pretrained(tmp_path / "int8")

    def spy(*args: Any, int8: bool = False, **more: Any) -> MuOmni:
        read.append(int8)
        return before(*args, int8=int8, **more)

    monkeypatch.setattr(MuOmni, "from_pretrained", spy)
    for command in (
        ["chat", str(nano_folder), "-m", "hello", "--int8"],
        ["generate", str(nano_folder), "hello", "--int8"],
        ["generate", str(nano_folder), "hello"],
        ["generate", str(tmp_path / "int8"), "hello", "--int8"],  # they are int8 already
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--max-new-tokens", "3", "--device", "cpu"])
        assert not ended.value.code, capsys.readouterr().err
    assert read == [True, True, False, False]
