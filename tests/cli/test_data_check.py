"""`muomni data check` over a small folder with one of each fault."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.cli import main


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", *args])
    return int(stop.value.code or 0), capsys.readouterr().out


def test_each_fault_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    Image.fromarray(noise).save(tmp_path / "same.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:999])
    soundfile.write(tmp_path / "silent.wav", np.zeros(1600), 16_000)
    soundfile.write(tmp_path / "long.wav", np.ones(32_000) / 2, 16_000)
    rows = [{"image": f"{name}.png", "caption": "x"} for name in ("good", "same", "blank", "broken", "none")]
    rows += [{"audio": "silent.wav", "text": "x"}, {"audio": "long.wav", "text": "x"}, {"image": "good.png"}]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    code, out = run(capsys, str(manifest), "--json", "--max-seconds", "1", "--out", str(tmp_path / "out"))
    assert code == 1
    counts = json.loads(out)["counts"]
    assert {kind: count for kind, count in counts.items() if count} == {
        "row": 1, "missing": 1, "broken": 1, "too long": 1, "silent": 1, "blank": 1, "unpaired": 1, "duplicate": 1,
    }  # fmt: skip
    for name in ("histogram.png", "contact_sheet.png"):
        assert Image.open(tmp_path / "out" / name).width > 100


def test_good_data_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((40, 40), 50).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": "noise"}\n')
    assert run(capsys, str(tmp_path / "rows.jsonl"))[0] == 0
    assert run(capsys, str(tmp_path / "none.jsonl"))[0] == 2
