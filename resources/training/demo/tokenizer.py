"""The tokenizer: byte-level BPE with every digit a token of its own.

Pre-tokenization is SmolLM's (single digits, then GPT-2's expression), because llama.cpp and other readers of GGUF
know it by name: "smollm".
"""

from collections.abc import Iterable
from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .tasks import Bard
from .text import ALL, CHAT_TEMPLATE, SPECIAL, Mixture, conversation
from .words import CAPITALS

VOCABULARY = 4096
PRE_TOKENIZER = "smollm"


def sample(seed: int, conversations: int) -> Iterable[str]:
    """Text of every kind, each kind in a share that earns it merges."""
    rng = Random(seed)
    for _ in range(conversations):
        for message in conversation(rng, Mixture(0.5, 0.35, 0.15), rng.choice((0, ALL))).messages:
            yield message.text
    for _ in range(30):
        for country, city in CAPITALS.items():
            yield f"{city} is the capital of {country}."
    for _, lines in Bard.split(held_out=False):
        yield "\n".join(lines)


def train(seed: int = 0, conversations: int = 30_000) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(seed, conversations), trainer)
    return tokenizer


def config() -> dict:
    """tokenizer_config.json."""
    bos, end, pad, *roles = SPECIAL
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": end,
        "pad_token": pad,
        "additional_special_tokens": roles,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
