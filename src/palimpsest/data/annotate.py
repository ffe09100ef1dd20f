"""What a flat record does not say: its template, relation, neighbour, and kind of rephrasing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.data.relations import Templates, cluster, fill, template_of
from palimpsest.edits import Edit


@dataclass(frozen=True)
class Candidate:
    """An edit and what was found out about it.

    Attributes:
        template: the prompt with the subject taken out; None without a subject.
        relation: name of the group of templates that ask for the same.
        neighbours: subjects of the locality probes, where a template fits them.
        probe_templates: for every locality probe the template that fits it, or None.
        rephrasing_kinds: for every rephrasing "template" (ends in a template of the relation, often after an
            unrelated sentence), "generated" (an opening of a text, which may not ask for the answer) or
            "question".
        rephrasing_templates: for every rephrasing the template it uses, or None.
    """

    edit: Edit
    template: str | None
    relation: str
    neighbours: tuple[str, ...]
    probe_templates: tuple[str | None, ...]
    rephrasing_kinds: tuple[str, ...]
    rephrasing_templates: tuple[str | None, ...]


def annotate(edits: Sequence[Edit], reader: str) -> list[Candidate]:
    """Recover templates and relations of a whole file; a relation that the records state is kept."""
    cloze = reader == "counterfact"
    templates = [template_of(edit.prompt, edit.subject) for edit in edits]
    known = Templates(template for template in templates if template is not None) if cloze else Templates(())
    matches = [[known.match(probe.prompt) for probe in edit.locality] for edit in edits]
    others = [
        [match[0] if match else None for match in found]
        if cloze
        else [template_of(text, edit.subject) for text in edit.rephrasings]
        for edit, found in zip(edits, matches, strict=True)
    ]
    links = [
        (template, other)
        for template, row in zip(templates, others, strict=True)
        for other in row
        if template and other
    ]
    everything = [template for template in templates if template] + (
        [] if cloze else [right for _, right in links]
    )
    # One shared record links cloze templates safely; rephrased questions wander, so two records must agree.
    names = cluster(links, everything, least=1 if cloze else 2)
    members: dict[str, list[str]] = defaultdict(list)
    for known_template, name in names.items():
        members[name].append(known_template)
    candidates = []
    for edit, template, found in zip(edits, templates, matches, strict=True):
        group = names.get(template or "", "")
        kinds = [_kind(text, edit.subject, members[group], cloze) for text in edit.rephrasings]
        candidates.append(
            Candidate(
                edit=edit,
                template=template,
                relation=edit.relation or group,
                neighbours=tuple(match[1] for match in found if match),
                probe_templates=tuple(match[0] if match else None for match in found),
                rephrasing_kinds=tuple(kind for kind, _ in kinds),
                rephrasing_templates=tuple(used for _, used in kinds),
            )
        )
    return candidates


def _kind(text: str, subject: str | None, members: Sequence[str], cloze: bool) -> tuple[str, str | None]:
    if not cloze:
        return "question", template_of(text, subject)
    ends = [template for template in members if subject and text.endswith(fill(template, subject))]
    return ("template", max(ends, key=len)) if ends else ("generated", None)
