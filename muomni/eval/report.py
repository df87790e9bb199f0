"""`report.json` and `report.html` of an evaluation: the table, and samples to be seen and heard."""

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from muomni.data.media.media_ref import MediaRef, open_bytes
from muomni.errors import MediaError
from muomni.eval.questions import Answered, SkillResult, by_skill
from muomni.eval.speech_quality import SpeechReport, Spoken
from muomni.eval.suite import Evaluation
from muomni.eval.wer import spoken_words
from muomni.html_page import render

# Samples of a skill or set that are shown: as many wrong ones as right ones, where there are so many.
_SAMPLES = 6
# A file whose samples are larger than this is no page any more.
_MOST_BYTES = 2 << 20


@dataclass(frozen=True)
class _Medium:
    kind: str
    url: str


@dataclass(frozen=True)
class _Sample:
    media: Sequence[_Medium]
    question: str
    reply: str
    answer: str
    right: bool


def as_json(evaluation: Evaluation, speech: SpeechReport | None) -> dict[str, Any]:
    """All results as plain values."""
    skills: dict[str, list[SkillResult]] = {name: by_skill(rows) for name, rows in evaluation.answered.items()}
    return {
        "figures": [asdict(figure) for figure in evaluation.figures],
        "skills": {name: [result.to_dict() for result in results] for name, results in skills.items()},
        "transcripts": {
            name: [{"audio": str(ref), "text": text, "transcript": heard} for ref, text, heard in rows]
            for name, rows in evaluation.transcripts.items()
        },
        "speech": None if speech is None else speech.to_dict(),
    }


def as_html(
    evaluation: Evaluation,
    spoken: Sequence[tuple[str, Spoken]],
    *,
    name: str,
    command: str,
    notes: Sequence[str] = (),
) -> str:
    """One file with the table and some samples of everything.

    Args:
        evaluation: its figures, replies and transcripts.
        spoken: some texts and the model's speech.
        name: of the model.
        command: that made it.
        notes: sentences below the table.
    """
    groups = [(title, samples) for title, samples in _groups(evaluation, spoken) if samples]
    date = time.strftime("%Y-%m-%d")
    values = {"figures": evaluation.figures, "groups": groups, "notes": notes}
    return render("muomni.eval", "page.html", name=name, command=command, date=date, **values)


def _groups(evaluation: Evaluation, spoken: Sequence[tuple[str, Spoken]]) -> Iterator[tuple[str, list[_Sample]]]:
    for name, answered in evaluation.answered.items():
        for result in by_skill(answered, whole=True):
            title = name if result.skill == name else f"{name}: {result.skill}"
            yield title, [_sample(one) for one in _some(result.answered)]
    for name, rows in evaluation.transcripts.items():
        yield (
            f"{name}: written down",
            [
                _Sample(_media([ref]), "", heard, text, spoken_words(text) == spoken_words(heard))
                for ref, text, heard in rows[:_SAMPLES]
            ],
        )
    yield "Spoken by the model", [_Sample([_sound(speech)], text, "", "", True) for text, speech in spoken[:_SAMPLES]]


def _some(answered: Sequence[Answered]) -> list[Answered]:
    right = [one for one in answered if one.right][: _SAMPLES // 2]
    wrong = [one for one in answered if not one.right][: _SAMPLES - len(right)]
    return [*right, *wrong]


def _sample(one: Answered) -> _Sample:
    content = one.question.prompt[-1]["content"]
    parts: list[dict[str, Any]] = content if isinstance(content, list) else [{"type": "text", "text": content}]
    media = _media([part[part["type"]] for part in parts if part["type"] in ("image", "audio")])
    text = " ".join(str(part["text"]) for part in parts if part["type"] == "text")
    return _Sample(media, text, one.reply, one.question.answer, one.right)


def _media(sources: Sequence[Any]) -> list[_Medium]:
    """What can be shown of sources: bytes or files that a browser reads."""
    media = []
    for source in sources:
        if not isinstance(source, bytes | MediaRef):
            continue
        try:
            content = open_bytes(source, _MOST_BYTES)
        except MediaError:  # too large, or gone: the reply is shown without it
            continue
        kind, form = _form_of(content)
        media.append(_Medium(kind, f"data:{form};base64,{base64.b64encode(content).decode()}"))
    return media


def _form_of(content: bytes) -> tuple[str, str]:
    """Kind and media type, from the first bytes."""
    if content[:4] in (b"RIFF", b"fLaC", b"OggS") and content[8:12] != b"WEBP":
        return "audio", {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg"}[content[:4]]
    if content[:3] == b"ID3" or content[:2] in (b"\xff\xfb", b"\xff\xf3"):
        return "audio", "audio/mpeg"
    return "image", "image/jpeg" if content[:2] == b"\xff\xd8" else "image/png"


def _sound(speech: Spoken) -> _Medium:
    from muomni.data.speech.synthesis import encode
    from muomni.ops.audio_frames import SAMPLE_RATE

    content = encode(speech.samples, SAMPLE_RATE, "flac")
    return _Medium("audio", f"data:audio/flac;base64,{base64.b64encode(content).decode()}")
