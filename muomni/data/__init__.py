"""Data for training: tokenizer, conversations, sources, the token index and datasets."""

from muomni.data.build import PreparedRows, TokenIndexes, prepare, prepare_rows, prepare_tokenizer
from muomni.data.datasets.batch import Batch, Row
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.multimodal import MultimodalDataset
from muomni.data.datasets.packed import PackedDataset
from muomni.data.datasets.prefetch import PrefetchLoader
from muomni.data.datasets.speech import SpeechDataset, WithSpeech
from muomni.data.index.build import build_index
from muomni.data.index.cache_folder import default_cache_dir
from muomni.data.index.token_index import TokenIndex
from muomni.data.sources.readers import Document
from muomni.data.sources.sources import iter_documents, iter_texts
from muomni.data.speech.paired_data import SpeechPairs
from muomni.data.speech.spoken_text import SpokenText, Word, clip_words, said_words, spoken_words, tokens_of, units_of
from muomni.data.text.chat import EncodedChat, Message, check_messages, encode_chat, expand
from muomni.data.text.chat_template import ChatTemplate
from muomni.data.text.content_parts import MediaPart
from muomni.data.text.special_tokens import SPECIAL, SpecialTokens
from muomni.data.text.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "SPECIAL",
    "Batch",
    "ChatTemplate",
    "Dataset",
    "Detokenizer",
    "Document",
    "EncodedChat",
    "MediaPart",
    "Message",
    "MultimodalDataset",
    "PackedDataset",
    "PrefetchLoader",
    "PreparedRows",
    "Row",
    "SpecialTokens",
    "SpeechDataset",
    "SpeechPairs",
    "SpokenText",
    "TokenIndex",
    "TokenIndexes",
    "Tokenizer",
    "WithSpeech",
    "Word",
    "build_index",
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
