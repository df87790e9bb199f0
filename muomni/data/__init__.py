"""Data for training: tokenizer, conversations, sources, the token cache and packed rows."""

from muomni.data.cache import TokenCache, build_token_cache, default_cache_dir
from muomni.data.chat import ChatTemplate, EncodedChat, Message, check_messages, encode_chat, expand
from muomni.data.media_index import MediaIndex, build_media_index
from muomni.data.media_rows import MediaRows
from muomni.data.packing import Batch, PackedRows, Row
from muomni.data.parts import MediaPart
from muomni.data.prefetch import Prefetched, Rows
from muomni.data.prepare import Prepared, PreparedRows, prepare, prepare_rows, prepare_tokenizer
from muomni.data.readers import Document
from muomni.data.sources import iter_documents, iter_texts
from muomni.data.speech_rows import SpeechPairs, SpeechRows, WithSpeech
from muomni.data.spoken import SpokenText, Word, clip_words, said_words, spoken_words, tokens_of, units_of
from muomni.data.tokenizer import SPECIAL, Detokenizer, SpecialTokens, Tokenizer

__all__ = [
    "SPECIAL",
    "Batch",
    "ChatTemplate",
    "Detokenizer",
    "Document",
    "EncodedChat",
    "MediaIndex",
    "MediaPart",
    "MediaRows",
    "Message",
    "PackedRows",
    "Prefetched",
    "Prepared",
    "PreparedRows",
    "Row",
    "Rows",
    "SpecialTokens",
    "SpeechPairs",
    "SpeechRows",
    "SpokenText",
    "TokenCache",
    "Tokenizer",
    "WithSpeech",
    "Word",
    "build_media_index",
    "build_token_cache",
    "check_messages",
    "clip_words",
    "default_cache_dir",
    "encode_chat",
    "expand",
    "iter_documents",
    "iter_texts",
    "prepare",
    "prepare_rows",
    "prepare_tokenizer",
    "said_words",
    "spoken_words",
    "tokens_of",
    "units_of",
]
