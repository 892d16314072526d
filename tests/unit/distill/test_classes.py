"""Classes matched by name, and head maps narrowed to what both networks have."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import DistillContext, DistillError, HeadSpec
from distill.classes import HeadView, compare_heads, match_classes, restricted_objectness
from tests.unit.distill import distill_toys as toys


def named(*names: str, **changes: Any) -> HeadSpec:
    return toys.head_spec(**({"num_classes": len(names), "names": names} | changes))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_names_are_matched_whatever_their_case_blanks_and_order() -> None:
    match = match_classes(named("Person ", "car", "tram"), named("bus", "CAR", " person"))
    assert (match.student, match.teacher) == ((0, 1), (2, 1))
    assert match.note == "2 classes are compared; only the student has tram and only the teacher has bus"


def test_equal_names_leave_nothing_out() -> None:
    match = match_classes(named("a", "b"), named("b", "a"))
    assert (match.student, match.teacher, match.note) == ((0, 1), (1, 0), "")


def test_a_long_list_of_classes_is_cut_short() -> None:
    note = match_classes(named("a"), named("a", *(f"c{i}" for i in range(79)))).note
    assert note.endswith("only the teacher has c0, c1, c2, c3, c4, c5, c6, c7 and 71 more") and "\n" not in note


@pytest.mark.parametrize("names", [("A", "a"), ("crane", "crane"), ("", " "), ("x", "X", "x"), ("1", "0")])
def test_equal_lists_of_names_are_matched_with_themselves(names: tuple[str, ...]) -> None:
    match = match_classes(named(*names), named(*names))
    assert match.student == match.teacher == tuple(range(len(names))) and match.note == ""


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (("a",), ("b", "a", "A"), [(0, 1)]),
        (("A",), ("b", "a", "A"), [(0, 2)]),
        (("A", "a"), ("a", "A"), [(0, 1), (1, 0)]),
        (("A", "a"), ("a", "b"), [(1, 0)]),  # A has lost its place to the equal name, and is left out
        (("Person", "car"), ("car ", "person"), [(0, 1), (1, 0)]),
        (("caf\u00e9", "bar"), ("bar", "cafe\u0301"), [(0, 1), (1, 0)]),  # as another system stores the accent
        (("0", "1", "2"), ("2", "0", "1"), [(0, 1), (1, 2), (2, 0)]),
        (("0", "1"), ("1", "0", "dot"), [(0, 1), (1, 0)]),
        (("a", "b"), ("crane", "b", "crane"), [(1, 1)]),  # what stands twice is nobody's match
    ],
)
def test_an_equal_name_goes_before_one_that_is_written_otherwise(
    student: tuple[str, ...], teacher: tuple[str, ...], pairs: list[tuple[int, int]]
) -> None:
    match = match_classes(named(*student), named(*teacher))
    assert list(zip(match.student, match.teacher)) == pairs


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (("a",), ("A", " a"), "the student's classes 'a' and the teacher's 'A', ' a' cannot be told apart by name"),
        (("A", " a"), ("a", "b"), "the student's classes 'A', ' a' and the teacher's 'a' cannot be told apart"),
        (("crane", "crane", "b"), ("crane", "b"), "classes 'crane', 'crane' and the teacher's 'crane' cannot be told"),
    ],
)
def test_a_name_that_may_mean_two_classes_is_an_error(
    student: tuple[str, ...], teacher: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        match_classes(named(*student), named(*teacher))


def test_chosen_classes_are_taken_as_they_are_written() -> None:
    head = named("A", "a", "Crane", "crane ", "tram")
    assert match_classes(head, head, ["a", "Tram"]).student == (1, 4)
    with pytest.raises(DistillError, match="'CRANE' may mean 'Crane', 'crane '; write the name exactly"):
        match_classes(head, head, ["CRANE"])
    twice = named("crane", "crane", "b")
    assert match_classes(twice, twice, ["crane"]).student == (0, 1)


def test_control_characters_of_a_name_stay_out_of_messages() -> None:
    note = match_classes(named("a", "\x1b[2Jb"), named("a", "x" * 5000)).note
    assert note.startswith("1 classes are compared; only the student has ?[2Jb") and len(note) < 300


@pytest.mark.parametrize(
    ("student", "teacher", "note"),
    [
        ((), (), ""),
        (("0", "1", "2"), (), ""),
        (("a", "b", "c"), (), "the teacher's classes have no names: matched by index"),
        (("0", "1", "2"), ("a", "b", "c"), "the student's classes have no names: matched by index"),
    ],
)
def test_without_names_equally_many_classes_are_matched_by_index(
    student: tuple[str, ...], teacher: tuple[str, ...], note: str
) -> None:
    match = match_classes(named(*student, num_classes=3), named(*teacher, num_classes=3))
    assert (match.student, match.teacher, match.note) == ((0, 1, 2), (0, 1, 2), note)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            named("a", "b"),
            named("c"),
            "no class in common: a, b and c; name the same things alike in the data set's yaml",
        ),
        (named(num_classes=3), named("a", "b"), "3 classes, the teacher 2, and the student's have no names to match"),
        (named("a", "b"), named(num_classes=3), "2 classes, the teacher 3, and the teacher's have no names to match"),
        (named("a", strides=(4, 8)), named("a"), None),
        (
            named("a", strides=(4, 64)),
            named("a"),
            r"strides \(4, 64\), the teacher's \(8, 16\), none in common; choose networks with equal strides",
        ),
    ],
)
def test_heads_with_nothing_in_common_are_refused(student: HeadSpec, teacher: HeadSpec, message: str | None) -> None:
    if message is None:
        assert compare_heads(student, teacher)[0].spec.strides == (8,)
        return
    with pytest.raises(DistillError, match=message) as raised:
        compare_heads(student, teacher)
    assert "\n" not in str(raised.value)


def test_a_view_of_everything_gives_the_very_maps() -> None:
    maps = toys.head_maps("anchor", 1)
    view = HeadView(toys.head_spec(), toys.STRIDES, range(3))
    assert all(a is b for a, b in zip(view([*maps, *maps]), maps)) and len(view([*maps, *maps])) == 2
    assert view.spec.names == ("0", "1", "2") and list(view.state_dict()) == []


def test_a_view_takes_levels_and_reorders_classes() -> None:
    maps = toys.head_maps("anchor", 1)
    view = HeadView(named("a", "b", "c"), (16,), (2, 0, 1))
    (found,) = view(maps)
    assert torch.equal(found, maps[1][..., [0, 1, 2, 3, 4, 7, 5, 6]]), "nothing is left out: objectness stays"
    assert view.spec == named("c", "a", "b", strides=(16,), anchors=[toys.ANCHORS[1]])


def test_a_view_of_an_anchor_free_head_keeps_all_sides() -> None:
    maps = toys.head_maps("anchor_free", 1)
    (found,) = HeadView(named("a", "b", "c", kind="anchor_free", anchors=None), (8,), (2, 0))(maps)
    sides = 4 * toys.BINS
    assert torch.equal(found, maps[0][:, [*range(sides), sides + 2, sides]])


def test_objects_of_other_classes_are_no_objects() -> None:
    """Objectness 0.8. Best class common: it stays. Best 0.9, best common 0.3: 0.8 * 0.3 / 0.9."""
    obj, best = torch.tensor([logit(0.8)] * 2), torch.tensor([logit(0.9)] * 2)
    common = torch.tensor([logit(0.9), logit(0.3)])
    found = restricted_objectness(obj, best, common).sigmoid()
    torch.testing.assert_close(found, torch.tensor([0.8, 0.8 * 0.3 / 0.9]), rtol=1e-5, atol=0)
    raw = torch.zeros(1, 1, 1, 1, 7)
    raw[..., 4:] = torch.tensor([logit(0.8), logit(0.3), logit(0.9)])
    (narrowed,) = HeadView(named("a", "b", strides=(8,), anchors=[[[8.0, 8.0]]]), (8,), (0,))([raw])
    assert narrowed.shape == (1, 1, 1, 1, 6)
    assert narrowed[..., 4].sigmoid().item() == pytest.approx(0.8 * 0.3 / 0.9, rel=1e-5)


@pytest.mark.parametrize("obj", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("best", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1.0, 120.0])
def test_restricted_objectness_is_finite_at_any_magnitude(obj: float, best: float, gap: float) -> None:
    values = [torch.tensor(v, requires_grad=True) for v in (obj, best, best - gap)]
    found = restricted_objectness(*values)
    found.backward()
    assert found.isfinite() and found <= obj + 1e-4
    assert all(v.grad is not None and v.grad.isfinite() for v in values)
    if gap < 1e-6:
        assert found.item() == pytest.approx(obj, abs=1e-4)


def test_labels_have_the_places_of_the_compared_classes() -> None:
    view = HeadView(named("a", "b", "c"), (8,), (2, 0))
    assert view.place_of(torch.tensor([0, 1, 2, 2])).tolist() == [1, -1, 0, 0]
    assert view.place_of(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_a_context_holds_the_teacher_only_where_it_is_given() -> None:
    context = DistillContext.from_targets(toys.TARGETS, toys.IMAGE_HW)
    assert context.teacher is None and isinstance(context.boxes_xyxy, Tensor) and not context.teacher_output
