"""What was said in a sound of the conversation, written down beside everything else."""

import asyncio
import logging

from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.engine import ServingEngine
from muomni.serve.errors import api_error
from muomni.serve.realtime.conversation import Item
from muomni.serve.realtime.events import error_fields
from muomni.serve.realtime.responses import Emit
from muomni.serve.realtime.session import InputTranscription
from muomni.serve.transcriptions import Transcription

log = logging.getLogger("muomni.serve")
_PLACE = "conversation.item.input_audio_transcription"


async def write_down(
    engine: ServingEngine, emit: Emit, item: Item, settings: InputTranscription, longest_s: float
) -> None:
    """Writes down the sound of an item: as events, and into the item.

    Args:
        engine: hears.
        emit: sends events.
        item: whose first part is a sound.
        settings: what the session says of it.
        longest_s: seconds of a sound.
    """
    part, place = item.content[0], {"item_id": item.id, "content_index": 0}
    assert part.sound is not None
    transcription = Transcription(engine, engine.metrics)
    try:
        with engine.place():
            await transcription.begin((part.sound, SAMPLE_RATE), longest_s, settings.prompt, None)
            async for text in transcription.texts():
                await emit(f"{_PLACE}.delta", delta=text, **place)
            result = await transcription.whole()
        part.text = result["text"]
        await emit(f"{_PLACE}.completed", transcript=part.text, usage=result["usage"], **place)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if api_error(error).status == 500:
            log.exception("a transcription failed")
        told = error_fields(error, None)
        del told["event_id"]
        await emit(f"{_PLACE}.failed", error=told, **place)
    finally:
        transcription.close()
