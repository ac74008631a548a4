import copy

import pytest

from helpers.chat import CHATML
from unlora.data import TextFormat


@pytest.fixture(scope="session")
def base(tokenizer):
    return TextFormat(tokenizer, "base")


@pytest.fixture(scope="session")
def chat(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.chat_template = CHATML
    return TextFormat(own, "chat")


@pytest.fixture
def chat_model(tiny_model, chat):
    model = tiny_model("llama")
    model.resize_token_embeddings(len(chat.tokenizer))
    return model
