"""The tokenizer of a model pre-trained here: byte-level BPE, saved so that any reader of hub directories
opens it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palimpsest.errors import ModelError

END_OF_TEXT = "<|endoftext|>"
# Special tokens of each kind of model, and what is written around a text.
SPECIAL = {
    "decoder": {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token", "pad_token")},
    "encoder_decoder": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "encoder": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
}
AROUND = {"encoder_decoder": "$A </s>", "encoder": "[CLS] $A [SEP]"}


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int, kind: str = "decoder"):
    """Train byte-level BPE of at most `vocabulary` tokens; returns a fast tokenizer.

    Each text is read as it stands and with a leading blank, because most words of a running text have one. The
    special tokens, and what is put around a text, are those of the kind of model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(SPECIAL[kind].values()))
    if not 256 + len(special) <= vocabulary < 2**31:
        raise ModelError(
            f"vocabulary is {vocabulary}; byte-level BPE needs at least {256 + len(special)} "
            f"(256 bytes and {', '.join(special)}) and takes less than {2**31}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((form for text in texts for form in (text, " " + text)), trainer)
    if kind in AROUND:
        numbers = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=AROUND[kind], special_tokens=numbers)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **SPECIAL[kind],
    )


def single_token_share(tokenizer, answers: Sequence[str]) -> float:
    """Share of answers that are one token when written after a blank (1.0 for an empty list)."""
    if not answers:
        return 1.0
    encoded = tokenizer([" " + answer for answer in answers])["input_ids"]
    return sum(len(ids) == 1 for ids in encoded) / len(encoded)
