"""Turn forget and retain rows into padded batches of tokens and labels."""

from unlora.data.alternates import alternate_answers
from unlora.data.conversations import Asked, Context, answers_of
from unlora.data.encoding import IGNORE_INDEX, Example, TextFormat, encode_answers, encode_records, encode_turns
from unlora.data.padding import Batch, UnlearnCollator, iter_batches, pad_batch, padding_id
from unlora.data.pairing import ForgetRetainDataset, PairSampler
from unlora.data.sources import Stream, check_overlap, check_rows, load_records, load_set, without_short_texts

__all__ = [
    "IGNORE_INDEX",
    "Asked",
    "Batch",
    "Context",
    "Example",
    "ForgetRetainDataset",
    "PairSampler",
    "Stream",
    "TextFormat",
    "UnlearnCollator",
    "alternate_answers",
    "answers_of",
    "check_overlap",
    "check_rows",
    "encode_answers",
    "encode_records",
    "encode_turns",
    "iter_batches",
    "load_records",
    "load_set",
    "pad_batch",
    "padding_id",
    "without_short_texts",
]
