"""`muomni data check` over a small folder with one of each fault."""

import gzip
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.cli import main
from muomni.config import encoder_configs
from muomni.data.media.image import token_grid


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
    soundfile.write(tmp_path / "fast.wav", np.sin(np.arange(1600)) / 2, 16_000)
    rows += [{"audio": "silent.wav", "text": "x"}, {"audio": "long.wav", "text": "x"}, {"image": "good.png"}]
    rows += [{"audio": "fast.wav", "text": "eighteen"}, {"image": "x" * 5000, "caption": "x"}]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    code, out = run(capsys, str(manifest), "--json", "--max-seconds", "1", "--out", str(tmp_path / "out"))
    assert code == 1
    counts = json.loads(out)["counts"]
    assert {kind: count for kind, count in counts.items() if count} == {
        "row": 1, "missing": 2, "broken": 1, "too long": 1, "silent": 1, "too fast": 1, "blank": 1,
        "unpaired": 1, "duplicate": 1,
    }  # fmt: skip
    for name in ("histogram.png", "contact_sheet.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 100


def test_good_data_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((40, 40), 50).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "caption": "noise"}\n')
    assert run(capsys, str(tmp_path / "rows.jsonl"))[0] == 0
    assert run(capsys, str(tmp_path / "none.jsonl"))[0] == 2


def test_other_forms_of_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parquet and .gz, rows of messages, an archive with a file that no row names, and tokens by the preset."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.effect_noise((400, 400), 50).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "used.png")
        archive.write(tmp_path / "a.png", "forgotten.png")
    shown = {"type": "image", "image": "used.png", "archive": "all.zip"}
    asked = {"role": "user", "content": [shown, {"type": "text", "text": "What?"}]}
    rows = [{"messages": [asked, {"role": "assistant", "content": "noise"}]}, {"messages": [asked]}]
    rows.append({"messages": [asked, {"role": "assistant", "content": "a <|image|>"}]})
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "b.png"}
    pq.write_table(pa.table({"image": [cell], "caption": ["noise"]}), tmp_path / "rows.parquet")
    manifests = str(tmp_path / "rows.jsonl.gz"), str(tmp_path / "rows.parquet")
    code, out = run(capsys, *manifests, "--json")
    found = json.loads(out)
    assert code == 1 and (found["rows"], found["pictures"]) == (4, 2)
    assert {kind: count for kind, count in found["counts"].items() if count} == {
        "row": 1, "unpaired": 1, "duplicate": 1, "unnamed": 1,
    }  # fmt: skip
    (unnamed,) = (problem for problem in found["problems"] if problem["kind"] == "unnamed")
    assert unnamed["where"].endswith("all.zip: forgotten.png")
    grids = {name: encoder_configs(name)[0] for name in ("nano", "tiny")}
    tokens = {name: math.prod(token_grid((400, 400), grid)) for name, grid in grids.items()}
    assert found["tokens"] == 3 * tokens["tiny"]
    Image.effect_noise((100, 100), 50).save(tmp_path / "small.png")
    (tmp_path / "small.jsonl").write_text('{"image": "small.png", "caption": "noise"}')
    counted = [json.loads(run(capsys, str(tmp_path / "small.jsonl"), "--json", "--preset", name)[1]) for name in grids]
    assert [one["tokens"] for one in counted] == [math.prod(token_grid((100, 100), grid)) for grid in grids.values()]
    assert counted[0]["tokens"] > counted[1]["tokens"]
    assert run(capsys, str(tmp_path / "small.jsonl"), "--preset", "huge")[0] == 2
