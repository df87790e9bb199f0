"""`--tuned-config FILE`: a chat makes float weights int8 where the bench found that faster, and refuses other files."""

from pathlib import Path

import pytest

from muomni import MuOmni
from muomni.cli import main
from muomni.cli.common.options import Decoding
from muomni.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_weights_become_int8_where_that_was_faster(nano_folder: Path, tmp_path: Path) -> None:
    faster = write(tmp_path / "faster.json", '// measured\n{"precision": "bf16", "chat": {"int8": true}}')
    slower = write(tmp_path / "slower.json", '{"chat": {"int8": false}}')
    assert Decoding(faster).int8(str(nano_folder))
    assert not Decoding(slower).int8(str(nano_folder)) and not Decoding(None).int8(str(nano_folder))
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    model.quantize()
    model.save_pretrained(tmp_path / "int8")
    assert not Decoding(faster).int8(str(tmp_path / "int8"))  # they are int8 already


def test_a_chat_and_generate_answer_with_it(
    nano_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = write(tmp_path / "tuned.json", '{"chat": {"int8": true}}')
    read: list[bool] = []
    before = MuOmni.from_pretrained.__func__

    def spy(cls: type[MuOmni], *args: object, int8: bool = False, **more: object) -> MuOmni:
        read.append(int8)
        return before(cls, *args, int8=int8, **more)

    monkeypatch.setattr(MuOmni, "from_pretrained", classmethod(spy))
    for command in (["chat", str(nano_folder), "-m", "hello"], ["generate", str(nano_folder), "hello"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--tuned-config", str(faster), "--max-new-tokens", "3", "--device", "cpu"])
        assert not ended.value.code, capsys.readouterr().err
    assert read == [True, True]


@pytest.mark.parametrize("text", ["{}", '{"chat": {"int8": "yes"}}', "[1]", "{"])
def test_other_files_are_refused(nano_folder: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"tuned\.json"):
        Decoding(write(tmp_path / "tuned.json", text)).int8(str(nano_folder))
