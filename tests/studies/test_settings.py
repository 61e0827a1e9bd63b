"""Settings from the command line: every type is read, and everything wrong is named with what would be right."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from optimand.core.errors import ArgumentError
from optimand.studies.settings import make, restore


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = dataclasses.field(default=3, metadata={"help": "how many", "least": 1, "most": 100})
    rate: float = 0.5
    loud: bool = False
    name: str = "a"
    data: Path | None = None
    solver: Literal["exact", "fast"] = "exact"
    counts: tuple[int, ...] = (1, 4)
    box: tuple[float, float] = (0.0, 1.0)
    nested: tuple[tuple[int, ...], ...] = ((1, 2),)
    limit: int | float | str | None = None

    def __post_init__(self):
        if self.rate > 10:
            raise ValueError("rate is more than 10")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("steps=7", 7),
        ("steps=1e2", 100),
        ("rate=2e-3", 0.002),
        ("rate=3", 3.0),
        ("loud=yes", True),
        ("loud=0", False),
        ("name=b = c", "b = c"),
        ("data=x/y.csv", Path("x/y.csv")),
        ("data=none", None),
        ("solver=fast", "fast"),
        ("counts=1,2,16", (1, 2, 16)),
        ("counts=(3,)", (3,)),
        ("counts=", ()),
        ("box=[0, 2.5]", (0.0, 2.5)),
        ("nested=(1,2),(3,4)", ((1, 2), (3, 4))),
        ("nested=((1,2),)", ((1, 2),)),
        ("limit=3", 3),
        ("limit=2.5", 2.5),
        ("limit=auto", "auto"),
    ],
)
def test_each_type_is_read_from_text_and_from_the_file_again(text, value):
    settings = make(Settings, [text])
    read = getattr(settings, text.partition("=")[0])
    assert read == value and type(read) is type(value)
    assert restore(Settings, dataclasses.asdict(settings)) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step=7", "'step' is not a setting. Did you mean 'steps'\\? Settings: steps=3, rate=0.5"),
        ("steps=many", "steps: must be a whole number, not 'many'. \\(how many\\)"),
        ("steps=1.5", "whole number"),
        ("steps=0", "steps: must be at least 1, not 0"),
        ("steps=101", "at most 100"),
        ("rate=nan", "rate: must be a number, not 'nan'"),
        ("rate=11", "rate is more than 10"),
        ("loud=maybe", "must be true or false, not 'maybe'"),
        ("solver=fats", "must be one of exact, fast, not 'fats'. Did you mean 'fast'"),
        ("counts=1,x", "counts: must be a whole number, not 'x'"),
        ("box=1", "must be 2 values with commas between, not '1'"),
        ("steps", "'steps' is not of the form name=value"),
        ("=3", "not of the form name=value"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ArgumentError, match=message):
        make(Settings, [text])


def test_a_setting_given_twice_is_refused():
    with pytest.raises(ArgumentError, match="gives 'steps' twice"):
        make(Settings, ["steps=1", "steps=2"])


def test_assignments_override_the_quick_values():
    assert make(Settings, ["steps=9"], {"steps": 2, "rate": 1.0}) == Settings(steps=9, rate=1.0)
