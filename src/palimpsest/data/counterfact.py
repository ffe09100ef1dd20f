"""CounterFact in its two published forms: EasyEdit's flat records and the original ones of ROME and MEMIT.

EasyEdit's rephrasing is mostly one of the original `generation_prompts`, so generality on the two forms is
not the same number. Both locality prompts ask for a neighbour of the subject that shares the old answer.
"""

from __future__ import annotations

from palimpsest.data.records import Record, RecordReader, Schema
from palimpsest.edits import Edit, Probe


def flat(record: Record) -> Edit:
    """EasyEdit's form: one rephrasing and one locality prompt a record (lists are accepted too)."""
    return record.edit(
        prompt=record.text("prompt"),
        target=record.text("target_new"),
        subject=record.text("subject"),
        truth=record.text("ground_truth"),
        rephrasings=record.texts("rephrase_prompt", empty=True),
        locality=(
            *paired(record, "locality_prompt", "locality_ground_truth", "locality"),
            *(paired(record, "unrelated_prompt", "unrelated_ground_truth", "unrelated")),
        ),
        portability=one_hop(record),
        relation=record.text("relation") if record.has("relation") else None,
    )


def original(record: Record) -> Edit:
    """ROME's form: the prompt is a template, there are two paraphrases and ten neighbourhood prompts."""
    template = record.text("requested_rewrite", "prompt")
    subject = record.text("requested_rewrite", "subject")
    target = record.text("requested_rewrite", "target_new", "str")
    truth = record.text("requested_rewrite", "target_true", "str")
    if template.count("{}") != 1:
        raise record.error(f"expected one {{}} for the subject in {template!r}", "requested_rewrite.prompt")
    neighbours = [Probe(prompt, truth) for prompt in record.texts("neighborhood_prompts", empty=True)]
    if record.has("distracting_neighborhood_prompts"):
        prompts = record.texts("distracting_neighborhood_prompts", empty=True)
        neighbours += [Probe(prompt, truth, "distracting_neighborhood") for prompt in prompts]
    if record.has("unrelated_relation"):
        question = record.text("unrelated_relation", "question")
        neighbours.append(Probe(question, record.text("unrelated_relation", "object"), "other_attribute"))
    consequences = list(one_hop(record))
    if record.has("alternative_subject"):
        # `replace`, not `format`: braces in real templates and subjects are ordinary text.
        prompt = template.replace("{}", record.text("alternative_subject"))
        consequences.append(Probe(prompt, target, "subject_replace"))
    relation = record.content["requested_rewrite"].get("relation_id")
    return record.edit(
        prompt=template.replace("{}", subject),
        target=target,
        subject=subject,
        truth=truth,
        rephrasings=record.texts("paraphrase_prompts", empty=True),
        locality=tuple(neighbours),
        portability=tuple(consequences),
        relation=record.text("requested_rewrite", "relation_id") if relation is not None else None,
    )


def paired(record: Record, prompts: str, answers: str, kind: str) -> tuple[Probe, ...]:
    """Probes from two fields that belong together; both may be absent, but not one of them."""
    if not record.has(prompts) and not record.has(answers):
        return ()
    left, right = record.texts(prompts, empty=True), record.texts(answers, empty=True)
    if len(left) != len(right):
        raise record.error(f"{len(left)} prompts but {len(right)} answers", answers)
    return tuple(Probe(prompt, answer, kind) for prompt, answer in zip(left, right, strict=True))


def one_hop(record: Record) -> tuple[Probe, ...]:
    """The question of one further step that some files add."""
    if not record.has("portability"):
        return ()
    question, answer = record.text("portability", "New Question"), record.text("portability", "New Answer")
    return (Probe(question, answer, "one_hop"),)


FLAT_KEYS = frozenset(
    {
        "prompt",
        "target_new",
        "subject",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
    }
)
ORIGINAL_KEYS = frozenset({"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"})
READER = RecordReader(
    "counterfact", "cf", (Schema("cf-orig", ORIGINAL_KEYS, original), Schema("cf-flat", FLAT_KEYS, flat))
)
