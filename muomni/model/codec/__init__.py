"""The speech codec: mono sound to codes and back. Read `codec` first, then `encoder`, `quantizer` and `decoder`."""

from muomni.model.codec.codec import CodecOutput, SpeechCodec
from muomni.model.codec.streaming import StreamingDecoder, StreamingEncoder

__all__ = ["CodecOutput", "SpeechCodec", "StreamingDecoder", "StreamingEncoder"]
