"""The tokenizer of a model pre-trained here: byte-level BPE, saved so that any reader of hub directories
opens it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palimpsest.errors import ModelError

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int):
    """Train byte-level BPE of at most `vocabulary` tokens; returns a fast tokenizer.

    Each text is read as it stands and with a leading blank, because most words of a running text have one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 257:
        raise ModelError(
            f"vocabulary is {vocabulary}; byte-level BPE needs at least 257 (256 bytes and end of text)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((form for text in texts for form in (text, " " + text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def single_token_share(tokenizer, answers: Sequence[str]) -> float:
    """Share of answers that are one token when written after a blank (1.0 for an empty list)."""
    if not answers:
        return 1.0
    encoded = tokenizer([" " + answer for answer in answers])["input_ids"]
    return sum(len(ids) == 1 for ids in encoded) / len(encoded)
