"""Tiny randomly initialised models of every family, with a real (small) byte-level tokenizer: seconds, no downloads."""

from __future__ import annotations

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from palimpsest.edits import Edit, Probe
from palimpsest.models.families import family_of
from palimpsest.models.loading import AUTO, LanguageModel
from palimpsest.models.tokenizer import train_tokenizer

FAMILIES = ("gpt2", "gptj", "llama")
ALL_FAMILIES = (*FAMILIES, "t5", "bert")
LABELS = ["class 0", "class 1", "class 2", "class 3"]
PEOPLE = ["Ada Tolvek", "Mira Sorn", "Ben Tolvek", "Ada Sorn", "Jon Karel", "Mira Karel"]
CITIES = ["Velden", "Ostrava", "Marrin", "Port Velden Bay"]
TEXTS = [
    f"{p} lives in the city of {c}. The mother of {p} was born in {c}, therefore I say so."
    for p in PEOPLE
    for c in CITIES
]


def tokenizer(kind: str = "decoder") -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens on a few sentences, with the special tokens of the kind."""
    if kind != "decoder":
        return train_tokenizer(TEXTS, 400, 64, kind)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        TEXTS, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def two_tokenizers():
    """The decoders' own, and another one of no more tokens that cuts words otherwise."""
    return tokenizer(), train_tokenizer(TEXTS[:2], 300, 64)


def network(
    family: str,
    seed: int = 0,
    width: int = 32,
    blocks: int = 4,
    inner: int = 48,
    scale: float = 6.0,
    gated: bool = True,
):
    """A random network whose weights are larger than usual, so that its logits are not flat."""
    torch.manual_seed(seed)
    config = configuration(family, width, blocks, inner, gated)
    model = getattr(transformers, AUTO[family_of(family).kind]).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and family == "t5":  # starts with large weights of its own
                parameter.mul_(0.5 if "shared" in name else 2.0)
            elif parameter.ndim == 2:
                reads_or_writes_words = any(word in name for word in ("embed", "wte", "lm_head"))
                parameter.mul_(20.0 if reads_or_writes_words else scale)
    return model


def configuration(family: str, width: int, blocks: int, inner: int, gated: bool) -> PretrainedConfig:
    """The configuration of a family at this size."""
    common = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        return GPT2Config(n_embd=width, n_layer=blocks, n_head=4, n_inner=inner, n_positions=64, **common)
    if family == "gptj":
        return GPTJConfig(
            n_embd=width,
            n_layer=blocks,
            n_head=4,
            n_inner=inner,
            n_positions=64,
            rotary_dim=4,
            tie_word_embeddings=False,
            **common,
        )
    if family == "llama":
        return LlamaConfig(
            hidden_size=width,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=inner,
            max_position_embeddings=64,
            **common,
        )
    if family == "t5":
        return T5Config(
            vocab_size=400,
            d_model=width,
            d_kv=width // 4,
            d_ff=inner,
            num_layers=blocks,
            num_decoder_layers=2,
            num_heads=4,
            n_positions=64,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu" if gated else "relu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    return BertConfig(
        vocab_size=400,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        intermediate_size=inner,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
        problem_type="single_label_classification",
    )


def tiny_model(family: str = "gpt2", dtype: torch.dtype = torch.float32, **shape) -> LanguageModel:
    """The wrapped model: gpt2, gptj, llama, t5 (gated=False for the plain feed-forward) or bert (`LABELS`)."""
    row = family_of(family)
    return LanguageModel(network(family, **shape).to(dtype), tokenizer(row.kind), row, f"tiny-{family}")


def some_edits(n: int = 6) -> list[Edit]:
    """Edits of different lengths, with all kinds of probes."""
    edits = []
    for i in range(n):
        person, city, other = PEOPLE[i % 6], CITIES[(i + 1) % 4], PEOPLE[(i + 3) % 6]
        prompt = f"{person} lives in the city of" if i % 2 else f"The mother of {person} was born in"
        edits.append(
            Edit(
                prompt=prompt,
                target=city,
                subject=person,
                identifier=f"edit-{i}",
                truth=CITIES[i % 4],
                rephrasings=(f"I say {person} lives in",),
                locality=(Probe(f"{other} lives in the city of", CITIES[i % 4]),),
            )
        )
    return edits


def random_statistics(model: LanguageModel, layers, seed: int = 0):
    """Well-conditioned second moments that belong to the model."""
    from palimpsest.statistics.covariance import CovarianceStatistics

    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for layer in layers:
        sample = torch.randn(
            4 * model.inner_width, model.inner_width, generator=generator, dtype=torch.float64
        )
        matrices[layer] = sample.T @ sample / len(sample)
    return CovarianceStatistics(matrices, 4 * model.inner_width, model.fingerprint)


def some_examples(family: str = "gpt2", valid: int = 2):
    """Six facts for an editor to learn from, the last `valid` of them for validation."""
    from palimpsest.learning.examples import LearningExample, Outside

    answers = LABELS if family == "bert" else CITIES
    examples = []
    for i, person in enumerate(PEOPLE):
        answer, other = answers[i % 4], answers[(i + 1) % 4]
        examples.append(
            LearningExample(
                identifier=f"fact-{i}",
                prompt=f"Where does {person} live?",
                subject=person,
                answer=answer,
                alternatives=tuple(text for text in answers if text != answer),
                rephrasings=(f"I say where does {person} live?", f"{person} lives in the city of"),
                outside=(
                    Outside(f"The mother of {person} was born in", other, near=True),
                    Outside(f"I say so, the city of {person}", other),
                ),
                split="train" if i < len(PEOPLE) - valid else "valid",
            )
        )
    return examples


def write_examples(path, examples):
    """A learning.jsonl of these examples, as a data set writes it."""
    from palimpsest.data.learning import learning_lines
    from palimpsest.files import write_text

    write_text(path, learning_lines(example.to_dict() for example in examples))


def breaking_off(function, call):
    """The function, but its call of this number (from 1) ends as Ctrl-C ends it; the calls so far are its `calls`."""
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    dying.calls = calls
    return dying


def saved_world(folder, edits: int = 6) -> LanguageModel:
    """A tiny GPT-2 in `folder`/model and a data set in `folder`/data, as the workflow lays them out."""
    from palimpsest.edits import write_edits

    model = tiny_model("gpt2")
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    write_edits(folder / "data" / "edits.jsonl", some_edits(edits))
    return model
