"""Which prompts ask for the same relation: found from the records themselves, as flat files do not say.

A prompt with its subject taken out is a template. CounterFact's locality prompts ask for the relation of
their record in other words, so a record links its own template with the one its locality prompt fits; ZsRE's
rephrasings do the same. Linked templates form a relation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SLOT = "\0"  # stands for the subject; cannot be mistaken for braces of the text


def template_of(prompt: str, subject: str | None) -> str | None:
    """The prompt with the last occurrence of the subject taken out, or None when it is not in there."""
    if not subject or (position := prompt.rfind(subject)) < 0:
        return None
    return prompt[:position] + SLOT + prompt[position + len(subject) :]


def fill(template: str, subject: str) -> str:
    """Put a subject into a template."""
    return template.replace(SLOT, subject, 1)


class Templates:
    """A set of templates that finds the one a prompt of an unknown subject fits."""

    def __init__(self, templates: Iterable[str]):
        parts = ((template, *template.split(SLOT, 1)) for template in set(templates))
        # The longest literal text is the most particular template; the name only makes the order definite.
        self.parts = sorted(parts, key=lambda part: (-len(part[0]), part[0]))

    def match(self, prompt: str) -> tuple[str, str] | None:
        """(template, subject), or None. The subject is what the literal text leaves over."""
        for template, before, after in self.parts:
            if len(prompt) >= len(template) and prompt.startswith(before) and prompt.endswith(after):
                subject = prompt[len(before) : len(prompt) - len(after)]
                if subject.strip() == subject:
                    return template, subject
        return None


def cluster(links: Iterable[tuple[str, str]], everything: Iterable[str], least: int) -> dict[str, str]:
    """Name the relation of every template: templates linked by at least `least` records belong together.

    The name is the most used template, without the subject.
    """
    uses = Counter(everything)
    parent = {template: template for template in uses}

    def root(template: str) -> str:
        while parent[template] != template:
            parent[template] = parent[parent[template]]
            template = parent[template]
        return template

    strength = Counter((min(pair), max(pair)) for pair in links if pair[0] != pair[1])
    for (left, right), count in strength.items():
        if count >= least:
            parent[root(left)] = root(right)
    groups: dict[str, list[str]] = defaultdict(list)
    for template in uses:
        groups[root(template)].append(template)
    names = {}
    for members in groups.values():
        chief = min(members, key=lambda template: (-uses[template], template))
        names.update(dict.fromkeys(members, fill(chief, "_")))
    return names


def majority_share(pairs: Sequence[tuple[str, str]], *, without_self: bool = False) -> float:
    """Share of (group, answer) pairs that come out right when each group's most frequent answer is given.

    With `without_self`, frequencies are those of the other pairs, and a tie counts as wrong.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, answer in pairs:
        counts[group][answer] += 1
    if not pairs:
        return 0.0
    if not without_self:
        return sum(max(counter.values()) for counter in counts.values()) / len(pairs)
    right = 0
    for group, answer in pairs:
        others = max((count for other, count in counts[group].items() if other != answer), default=0)
        right += counts[group][answer] - 1 > others
    return right / len(pairs)
