"""What a recipe may say of how strong a loss is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill import LOSSES, DistillError
from distill.strength.mixture import parse_entry, split_entry
from tests.unit.distill import distill_toys as toys


def amounts(name: str, settings: Any, kind: str = "anchor") -> dict[str, tuple[str, float]]:
    entry = parse_entry(name, settings)
    loss = LOSSES[name](replace(toys.setup(), student_head=toys.head_spec(kind), teacher_head=toys.head_spec(kind)))
    return {portion.name: (portion.kind, portion.amount) for portion in split_entry(entry, loss)}


def test_a_weight_or_a_share_of_the_whole_or_of_parts() -> None:
    assert amounts("fgd", None) == {"fgd": ("weight", 1.0)}
    assert amounts("fgd", {"weight": 2}) == {"fgd": ("weight", 2.0)}
    assert amounts("fgd", {"share": 0.4, "temperature": 1}) == {"fgd": ("share", 0.4)}
    of_parts = {"output/box": ("share", 0.2), "output/cls": ("share", 0.1)}
    assert amounts("output", {"share": {"cls": 0.1, "box": 0.2, "obj": 0}}) == of_parts
    assert amounts("output", {"share": {"cls": 0.1, "box": 0.2}}) == of_parts, "a part that is not named is left out"
    assert amounts("cwd", {"weight": {"P3": 0.1, "P4": 3}}) == {"cwd/P3": ("weight", 0.1), "cwd/P4": ("weight", 3.0)}


def test_parts_that_another_family_has_are_passed_over() -> None:
    recipe = {"share": {"box": 0.2, "obj": 0.1, "cls": 0.1, "dfl": 0.3}}
    assert set(amounts("crosskd", recipe)) == {"crosskd/cls", "crosskd/obj", "crosskd/box"}
    assert set(amounts("output", {"share": {"box": 0.2, "obj": 0.1}}, "anchor_free")) == {"output/box"}


@pytest.mark.parametrize("nothing", [{"weight": 0}, {"share": 0}, {"share": {"box": 0, "cls": 0}}])
def test_nothing_of_a_loss(nothing: Any) -> None:
    assert not parse_entry("output", nothing).active


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.4, "weight": 1}, "kd_losses.output has a weight and a share; .* leave one of the two out"),
        ({"share": -1}, "kd_losses.output: share is -1; expected a number of at least 0"),
        ({"share": True}, "share is True"),
        ({"share": "much"}, "share is 'much'"),
        ({"share": None}, "share is None"),
        ({"share": {}}, "share names no part"),
        ({"share": {"box": "x"}}, "share.box is 'x'; expected a number"),
        ({"shares": 1}, "unknown key 'shares'; did you mean 'share'"),
        ({"share": {"bbox": 1}}, "kd_losses.output: share: unknown part 'bbox'; did you mean 'box'"),
        ({"share": {"obj": 1}}, "nothing is left of obj between these two heads; it has box, obj, cls"),
    ],
)
def test_mistakes(settings: Any, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        amounts("output", settings, "anchor_free")


def test_a_part_that_its_gain_switches_off_has_no_share() -> None:
    entry = parse_entry("output", {"box": 0, "share": {"box": 0.2}})
    with pytest.raises(DistillError, match="share gives box 0.2, but its gain is 0; leave one out"):
        split_entry(entry, LOSSES["output"](toys.setup(), **entry.settings))
