"""Settings from plain data: what JSON states becomes the field's type, what it may not state is refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import SettingsError
from palimpsest.plain import build, plain, schema_of


@dataclass(frozen=True)
class Example:
    """One field of every form that settings have."""

    count: int
    rate: float = 0.5
    name: str = "a"
    open: bool = False
    most: float | None = None
    layers: tuple[int, ...] = (1, 2)
    pairs: tuple[tuple[int, int], ...] = ()
    texts: tuple[tuple[str, ...], ...] | None = None
    sizes: list[int] | None = None
    way: Literal["one", "two"] = "one"
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A check of its own that a wrong size would break."""
        if self.texts is not None:
            self.texts[0]


WHOLE = st.integers(-(10**6), 10**6)
VALUES = {
    "count": WHOLE,
    "rate": st.floats(allow_nan=False) | WHOLE,
    "name": st.text(max_size=5),
    "open": st.booleans(),
    "most": st.none() | st.floats(allow_nan=False),
    "layers": st.lists(WHOLE, max_size=3),
    "pairs": st.lists(st.tuples(WHOLE, WHOLE).map(list), max_size=2),
    "texts": st.none() | st.lists(st.lists(st.text(max_size=3), max_size=2), min_size=1, max_size=2),
    "sizes": st.none() | st.lists(WHOLE, max_size=2),
    "way": st.sampled_from(["one", "two"]),
    "more": st.dictionaries(st.text(max_size=2), WHOLE, max_size=2),
}


@given(content=st.fixed_dictionaries({"count": VALUES["count"]}, optional=dict(list(VALUES.items())[1:])))
def test_what_is_built_states_itself_again(content):
    """To JSON and back: equal, of the fields' types, and accepted once more as it is."""
    made = build(Example, json.loads(json.dumps(content)), "an example")
    assert {name: plain(getattr(made, name)) for name in content} == content
    assert type(made.rate) is float and type(made.count) is int
    assert made.most is None or type(made.most) is float
    assert isinstance(made.layers, tuple) and all(isinstance(pair, tuple) for pair in made.pairs)
    assert made.sizes is None or isinstance(made.sizes, list)
    assert build(Example, {name: getattr(made, name) for name in VALUES}, "an example") == made


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", "3", "a whole number"),
        ("count", 2.5, "a whole number"),
        ("count", True, "a whole number"),
        ("count", None, "a whole number"),
        ("rate", "x", "a number"),
        ("most", [1], "a number or null"),
        ("open", 1, "true or false"),
        ("layers", 5, "a list of (a whole number)"),
        ("layers", "12", "a list of (a whole number)"),
        ("layers", [0.5], "a list of (a whole number)"),
        ("pairs", [[1, 2, 3]], "a list of (a list of (a whole number, a whole number))"),
        ("pairs", [[1]], "a list of (a list of (a whole number, a whole number))"),
        ("texts", {}, "a list of (a list of (text)) or null"),
        ("sizes", ["1"], "a list of (a whole number) or null"),
        ("way", "three", "one of 'one', 'two'"),
        ("more", [], "names with values"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value, expected):
    with pytest.raises(SettingsError) as refused:
        build(Example, {"count": 1, name: value}, "an example")
    shown = f"an example: setting {name} = {value!r} is not allowed: expected {expected}"
    assert str(refused.value) == shown


def test_unknown_and_missing_names_are_told():
    with pytest.raises(
        SettingsError,
        match=r"an example has no setting 'cuont' \(did you mean 'count'\?\)\. It has: count, rate",
    ):
        build(Example, {"cuont": 1}, "an example")
    with pytest.raises(SettingsError, match="an example: the setting 'count' is missing"):
        build(Example, {}, "an example")
    with pytest.raises(SettingsError, match="an example: expected names with values, found"):
        build(Example, [1], "an example")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="an example: a value cannot be used"):
        build(Example, {"count": 1, "texts": []}, "an example")


def test_names_beside_them_are_left_out_unless_they_are_settings():
    assert build(Example, {"count": 1, "title": "x"}, "an example", {"title", "count"}) == Example(1)


def test_whole_numbers_may_be_written_with_a_point():
    made = build(
        Example,
        {"count": 3.0, "rate": 15000, "layers": [4.0], "pairs": [[1.0, 2]], "sizes": [5.0]},
        "an example",
    )
    assert (made.count, type(made.count), made.rate, type(made.rate)) == (3, int, 15000.0, float)
    inside = (*made.layers, *made.pairs[0], *(made.sizes or ()))
    assert inside == (4, 1, 2, 5) and all(type(number) is int for number in inside)


def test_a_field_that_no_file_can_state_is_an_error_of_the_class():
    @dataclass
    class Odd:
        value: bytes = b""

    with pytest.raises(SettingsError, match=r"setting .*Odd\.value has the type"):
        schema_of(Odd)
