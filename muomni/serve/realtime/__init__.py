"""Live conversation over a WebSocket, in the events of OpenAI's Realtime API.

Read in this order:

* `session`: what a client may configure; `conversation`: items, and the prompt that they make; `events`: what a client
  may send.
* `audio_buffer`: sound that comes in; `vad`: when somebody speaks, by `silero` or by the loudness; `listener`: both.
* `responses`: one response being made; `connection`: a client's events in turn; `endpoint`: who may come in.
"""
