"""docs/what_came_out.md says of every claim what the gallery says."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "what_came_out.md"
PAGES = sorted(path.name for path in (DOCS / "gallery").glob("claims*.md"))
VERDICTS = ("holds", "fails", "undecided", "not run", "as printed")
# What a paragraph may name, by the first words of its bold heading; others may name any claim.
HEADINGS = {
    "As in the paper": {"holds"},
    "Not as in the paper": {"fails"},
    "Undecided": {"undecided", "not run", "as printed"},
}


def in_gallery(page: str) -> dict[str, str]:
    """Verdict of each claim, from the table at the head of a page of claims."""
    text = (DOCS / "gallery" / page).read_text(encoding="utf-8")
    found = re.findall(r"^\| \[(C\d+)\]\(#c\d+\) \|.*\| \*\*([a-z ]+)\*\* \|", text, re.MULTILINE)
    assert found, f"no claims in {page}"
    return dict(found)


def section(page: str, text: str) -> str:
    """The part of the text whose heading links to a page of claims."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    own = [part for part in parts if f"](gallery/{page})" in part.splitlines()[0]]
    assert len(own) == 1, f"{len(own)} headings of {PAGE.name} link to gallery/{page}, one is needed"
    return own[0]


def named(text: str) -> list[str]:
    """Claims that a text names; "C1 to C3" names three."""
    ranges = re.sub(
        r"\bC(\d+) to C(\d+)\b",
        lambda match: ", ".join(f"C{number}" for number in range(int(match[1]), int(match[2]) + 1)),
        " ".join(text.split()),
    )
    return re.findall(r"\bC\d+\b", ranges)


def line_of(page: str, verdicts: dict[str, str]) -> str:
    """The line with which a section has to end."""
    groups = {kind: [claim for claim, verdict in verdicts.items() if verdict == kind] for kind in VERDICTS}
    words = "; ".join(f"{kind} {', '.join(claims)}" for kind, claims in groups.items() if claims)
    return f"**Verdicts** ([claims](gallery/{page})): {words}."


def wrong(page: str, verdicts: dict[str, str], text: str) -> list[str]:
    """What a section says otherwise than the gallery."""
    own = section(page, text)
    wanted = line_of(page, verdicts)
    lines = [part for part in re.split(r"\n\s*\n", own.strip()) if part.startswith("**Verdicts**")]
    found = " ".join(lines[-1].split()) if lines else ""
    problems = []
    if found != wanted:
        kinds = "|".join(VERDICTS)
        groups = re.findall(rf"\b({kinds}) ((?:C\d+(?:, )?)+)", found)
        said = {claim: kind for kind, claims in groups for claim in named(claims)}
        odd = [claim for claim in {**verdicts, **said} if said.get(claim) != verdicts.get(claim)]
        problems.append(
            f"{', '.join(odd) or 'the line'}: the section on gallery/{page} has to end with\n{wanted}"
        )
    for heading, rest in re.findall(
        r"^\*{2,3}(.+?)\*{2,3}(.*?)(?=^\*{2,3}|\Z)", own, re.MULTILINE | re.DOTALL
    ):
        for start, allowed in HEADINGS.items():
            odd = [
                claim
                for claim in named(rest)
                if heading.startswith(start) and verdicts.get(claim) not in allowed
            ]
            problems += [
                f"gallery/{page}: {c} is {verdicts.get(c)}, and stands under {heading!r}" for c in odd
            ]
    return problems


@pytest.mark.parametrize("page", PAGES)
def test_each_claim_has_the_verdict_of_the_gallery(page):
    problems = wrong(page, in_gallery(page), PAGE.read_text(encoding="utf-8"))
    assert not problems, "\n".join(problems)


def test_what_is_left_out_or_stands_elsewhere_is_named():
    verdicts = {"C1": "holds", "C2": "undecided", "C3": "holds"}
    head = "## A ([claims](gallery/claims.md))\n\n"
    line = "**Verdicts** ([claims](gallery/claims.md)): holds C1,\nC3; undecided C2.\n"
    assert wrong("claims.md", verdicts, f"{head}**As in the paper.** x (C1).\n\n{line}") == []
    left_out, elsewhere = (
        wrong("claims.md", verdicts, head + text)
        for text in (line.replace(",\nC3", ""), f"**As in the papers.** x (C1 to C3).\n\n{line}")
    )
    assert (
        len(left_out) == 1 and left_out[0].startswith("C3:") and line_of("claims.md", verdicts) in left_out[0]
    )
    assert elsewhere == ["gallery/claims.md: C2 is undecided, and stands under 'As in the papers.'"]
