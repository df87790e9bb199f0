"""Lines of metrics: what is written is read back, and a resumed run goes on after its checkpoint."""

import json

from muomni.training.reporting.metrics_log import METRICS, MetricsLog, read_lines


def test_line_separators_of_unicode_in_a_text_end_no_line(tmp_path):
    text = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven\r\n"
    with MetricsLog(tmp_path, 0, 0, tensorboard=False) as log:
        log.write("sample", 1, prompt=text, text=text)
        log.write("train", 1, loss=2.5)
    assert [line.get("text") for line in read_lines(tmp_path / METRICS)] == [text, None]
    with MetricsLog(tmp_path, 1, 1, tensorboard=False):
        pass
    assert [line["kind"] for line in read_lines(tmp_path / METRICS)] == ["sample", "train"]


def test_a_line_that_cannot_be_read_takes_no_other_with_it(tmp_path):
    good = [json.dumps({"kind": "train", "step": step}) for step in (1, 2, 3)]
    broken = ['{"kind": "tra', "\ufffd", "[1]", "{}", '{"kind": "train", "step": "1"}']
    (tmp_path / METRICS).write_text("\n".join([good[0], *broken, *good[1:], '{"kind": "train", "st']))
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1, 2, 3]
    (tmp_path / METRICS).write_bytes(b"\xff\xfe\n" + good[0].encode())
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1]


def test_steps_skipped_after_a_checkpoint_come_once_after_a_resume(tmp_path):
    """A skipped step has the number of the applied one before it, so numbers alone do not tell it."""

    def write(log, *steps):
        for step, skipped in steps:
            log.write("train", step, **({"skipped": True} if skipped else {}))

    with MetricsLog(tmp_path, 0, 0, tensorboard=False) as log:
        write(log, (1, False), (1, True), (2, False))
        log.write("sample", 2, text="after the checkpoint at step 2")
        write(log, (2, True), (2, True))
        log.write("speed", 2)
        write(log, (3, False))
    with MetricsLog(tmp_path, 2, 3, tensorboard=False) as log:
        write(log, (2, True), (2, True), (3, False))
    lines = [(line["kind"], line["step"]) for line in read_lines(tmp_path / METRICS)]
    assert lines == [*[("train", step) for step in (1, 1, 2)], ("sample", 2), *[("train", step) for step in (2, 2, 3)]]
