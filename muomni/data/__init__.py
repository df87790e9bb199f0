"""Data for training: tokenizer, conversations, sources, the token index and datasets."""

from muomni.data.build import PreparedRows, prepare, prepare_rows, prepare_tokenizer
from muomni.data.cache_folder import default_cache_dir
from muomni.data.datasets.batch import Batch
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.multimodal import MultimodalDataset
from muomni.data.datasets.packed import PackedDataset
from muomni.data.datasets.prefetch import PrefetchLoader
from muomni.data.datasets.speech import SpeechDataset, WithSpeech
from muomni.data.documents import iter_documents, iter_texts
from muomni.data.index.build import build_index
from muomni.data.index.token_index import TokenIndex
from muomni.data.sources.readers import Document
from muomni.data.speech.paired_data import SpeechPairs
from muomni.data.speech.spoken_text import clip_words, said_words, units_of
from muomni.data.text.chat import check_messages, encode_chat
from muomni.data.text.chat_template import ChatTemplate
from muomni.data.text.special_tokens import SPECIAL
from muomni.data.text.tokenizer import Tokenizer

__all__ = [
    "SPECIAL",
    "Batch",
    "ChatTemplate",
    "Dataset",
    "Document",
    "MultimodalDataset",
    "PackedDataset",
    "PrefetchLoader",
    "PreparedRows",
    "SpeechDataset",
    "SpeechPairs",
    "TokenIndex",
    "Tokenizer",
    "WithSpeech",
    "build_index",
    "check_messages",
    "clip_words",
    "default_cache_dir",
    "encode_chat",
    "iter_documents",
    "iter_texts",
    "prepare",
    "prepare_rows",
    "prepare_tokenizer",
    "said_words",
    "units_of",
]
