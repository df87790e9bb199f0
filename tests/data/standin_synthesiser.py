"""Answers as `muomni.data.speech.espeak_worker` does, with tones: run in its place where eSpeak is not installed."""

import array
import json
import math
import sys

RATE = 22_050

for line in sys.stdin.buffer:
    request = json.loads(line)
    text = request.get("text", "")
    if "crash" in text:
        sys.exit(3)
    if request["voice"] == "xx":
        sys.stdout.buffer.write(json.dumps({"error": "there is no voice 'xx'"}).encode() + b"\n")
    else:
        spoken = round(len(text) * 0.05 * RATE * 160 / request["speed"])
        step = math.tau * (100 + request["pitch"] + sum(text.encode()) % 97) / RATE
        tone = [round(9000 * math.sin(n * step)) for n in range(0 if "nothing" in text else spoken)]
        samples = array.array("h", [*tone, *[0] * RATE]).tobytes()
        answer = {"data": len(samples), "rate": RATE}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + samples)
    sys.stdout.buffer.flush()
