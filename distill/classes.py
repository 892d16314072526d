"""Which class of the teacher is which class of the student, and head maps narrowed to the classes that both have."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .context import HeadSpec
from .errors import DistillError, printable, unknown_name

_LEAST_GAP = 1e-6
"""Logits nearer than this count as equal."""
_SHOWN = 8
"""Class names that a message lists."""


@dataclass(frozen=True)
class ClassMatch:
    """The classes that student and teacher have in common, in the student's order.

    Attributes:
        student, teacher: indices of the common classes in either head.
        note: what is left out of the comparison, in one line; empty where nothing is.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    note: str = ""


def match_classes(student: HeadSpec, teacher: HeadSpec, wanted: Sequence[str] | None = None) -> ClassMatch:
    """Matches the classes of two heads by name.

    Equal lists of names are matched by index. Otherwise equal names belong together, and where a name has no equal, one
    that differs from it in case, in blanks around it or in how accents are stored only. Where a head has no names, or
    only the numbers that a model has by default, equally many classes are matched by index.

    Args:
        student, teacher: the heads.
        wanted: names of the classes to compare, of those that both have; None: all of them.

    Raises:
        DistillError: a wanted class is not in both heads, no class is common, a name may mean several classes, or there
            are no names to match unequal numbers of classes by.
    """
    unnamed = [who for who, head in (("student", student), ("teacher", teacher)) if _unnamed(head)]
    if len(unnamed) == 1 and any(set(_names(a)) <= set(_names(b)) for a, b in ((student, teacher), (teacher, student))):
        unnamed = []  # digits that were read off pictures are names too, in whatever order
    if unnamed and wanted is not None:
        raise DistillError(f"classes are chosen by name, and the {unnamed[0]}'s have none; name them in its data set")
    if unnamed and student.num_classes != teacher.num_classes:
        raise DistillError(
            f"the student has {student.num_classes} classes, the teacher {teacher.num_classes}, and the "
            f"{unnamed[0]}'s have no names to match them by; name them in its data set's yaml, or distil features only"
        )
    if unnamed:
        both = tuple(range(student.num_classes))
        note = f"the {unnamed[0]}'s classes have no names: matched by index" if len(unnamed) == 1 else ""
        return ClassMatch(both, both, note)
    pairs = _pairs(_names(student), _names(teacher), "the student's classes", "the teacher's")
    if not pairs:
        raise DistillError(
            f"student and teacher have no class in common: {_listed(_names(student))} and {_listed(_names(teacher))}; "
            "name the same things alike in the data set's yaml, or distil features only"
        )
    ours, theirs = (tuple(side) for side in zip(*pairs))
    note = _left_out(student, ours, teacher, theirs)
    if wanted is not None:
        ours, theirs = (tuple(side) for side in zip(*_chosen(pairs, _names(student), wanted)))
        note = f"of the common classes this teacher teaches {_listed([_names(student)[index] for index in ours])}"
    return ClassMatch(ours, theirs, note)


def _pairs(ours: Sequence[str], theirs: Sequence[str], who: str, others: str) -> list[tuple[int, int]]:
    """Indices of the names that belong together, in the order of `ours`; `who` and `others` name the lists in errors.

    Raises:
        DistillError: a name that both lists have stands twice in one of them.
    """
    if list(ours) == list(theirs):  # whatever they are called, also twice alike
        return [(index, index) for index in range(len(ours))]
    pairs: list[tuple[int, int]] = []
    for plain in (str, _plain):  # equal names first, so that a never takes the place of A
        mine = _places(ours, {index for index, _ in pairs}, plain)
        other = _places(theirs, {index for _, index in pairs}, plain)
        for name in [name for name in mine if name in other]:
            left, right = mine[name], other[name]
            if len(left) > 1 or len(right) > 1:
                raise DistillError(
                    f"{who} {_quoted([ours[i] for i in left])} and {others} {_quoted([theirs[i] for i in right])} "
                    "cannot be told apart by name; give each class a name of its own in the data set's yaml"
                )
            pairs.append((left[0], right[0]))
    return sorted(pairs)


def _places(names: Sequence[str], taken: set[int], plain: Callable[[str], str]) -> dict[str, list[int]]:
    """The indices of each name in its plain form, without those that are taken."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if index not in taken:
            places.setdefault(plain(name), []).append(index)
    return places


def _chosen(pairs: list[tuple[int, int]], names: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs of common classes whose names are wanted; a name that stands twice in equal lists means both."""
    if not wanted:
        raise DistillError("the classes of a teacher are an empty list; leave it out for all of them")
    known, taken = [names[ours] for ours, _ in pairs], set()
    for name in wanted:
        places = [index for index, other in enumerate(known) if other == name]
        alike = places or [index for index, other in enumerate(known) if _plain(other) == _plain(name)]
        if not alike:
            raise unknown_name("class", name, known, "the classes of a teacher")
        if not places and len(alike) > 1:
            raise DistillError(
                f"the classes of a teacher: {_quoted([name])} may mean {_quoted([known[i] for i in alike])}; "
                "write the name exactly"
            )
        taken.update(alike)
    return [pair for index, pair in enumerate(pairs) if index in taken]


def _left_out(student: HeadSpec, ours: tuple[int, ...], teacher: HeadSpec, theirs: tuple[int, ...]) -> str:
    parts = []
    for who, head, common in (("student", student, ours), ("teacher", teacher, theirs)):
        alone = [name for index, name in enumerate(_names(head)) if index not in common]
        if alone:
            parts.append(f"only the {who} has {_listed(alone)}")
    return f"{len(ours)} classes are compared; {' and '.join(parts)}" if parts else ""


def _names(head: HeadSpec) -> tuple[str, ...]:
    return head.names or tuple(str(index) for index in range(head.num_classes))


def _plain(name: str) -> str:
    """A name without what people and systems write now in one way and now in another, such as accents."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _unnamed(head: HeadSpec) -> bool:
    """Whether there are no names, or those that a class gets from its number: 0, 1, ... or class0, class1, ..."""
    names = list(_names(head))
    return any(names == [f"{word}{index}" for index in range(head.num_classes)] for word in ("", "class"))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def _quoted(names: Sequence[str]) -> str:
    """Names as a message has to show them where blanks make the difference."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:_SHOWN]) + more


class HeadView(nn.Module):
    """Brings a head's raw maps to the levels and classes that are compared.

    A view of all levels and classes in their order gives the very maps back.

    Args:
        head: the head as it is.
        strides: those of its strides that are compared, in the order wanted.
        classes: indices of the classes that are compared, in the order wanted.

    Attributes:
        spec: the head as it is compared.
    """

    classes: Tensor
    columns: Tensor

    def __init__(self, head: HeadSpec, strides: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self._levels = [head.strides.index(stride) for stride in strides]
        self._all = list(classes) == list(range(head.num_classes))
        self._drops = len(set(classes)) < head.num_classes
        anchors = None if head.anchors is None else tuple(head.anchors[level] for level in self._levels)
        names = tuple(_names(head)[index] for index in classes)
        self.spec = replace(head, num_classes=len(classes), strides=tuple(strides), anchors=anchors, names=names)
        self.register_buffer("classes", torch.tensor(classes), persistent=False)
        self.register_buffer("columns", torch.tensor([0, 1, 2, 3, 4, *(5 + c for c in classes)]), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The compared part of the raw maps; maps of auxiliary branches, after those of the head, are left out."""
        chosen = [maps[level] for level in self._levels]
        return chosen if self._all else [self._narrowed(raw) for raw in chosen]

    def place_of(self, classes: Tensor) -> Tensor:
        """(T,) the head's own classes as places among the compared ones, -1 for one that is not compared."""
        if self._all:
            return classes
        same = classes[:, None] == self.classes  # (T, nc)
        return torch.where(same.any(1), same.to(torch.uint8).argmax(1), -1)

    def _narrowed(self, raw: Tensor) -> Tensor:
        if self.head.kind == "anchor_free":
            sides = raw.shape[1] - self.head.num_classes
            return torch.cat((raw[:, :sides], raw[:, sides:].index_select(1, self.classes)), 1)
        narrowed = raw.index_select(-1, self.columns)  # (N, na, H, W, 5 + nc)
        if not self._drops:
            return narrowed
        obj = restricted_objectness(raw[..., 4], raw[..., 5:].amax(-1), narrowed[..., 5:].amax(-1))
        return torch.cat((narrowed[..., :4], obj[..., None], narrowed[..., 5:]), -1)


def restricted_objectness(obj: Tensor, best: Tensor, best_common: Tensor) -> Tensor:
    """Objectness logits as they would be if only the common classes were objects.

    The probability is sigmoid(obj) * sigmoid(best_common) / sigmoid(best): unchanged where the likeliest class is a
    common one, and low where the head sees an object of another class, which the other network does not know. It is
    written in logarithms, as 1 / p - 1, so that it neither overflows nor loses digits.

    Args:
        obj: objectness logits.
        best, best_common: logits of the likeliest of all classes, and of the common ones.
    """
    gap = best - best_common
    lost = torch.log(-torch.expm1(-gap.clamp(min=_LEAST_GAP))) - best_common
    restricted = F.softplus(-best) - torch.logaddexp(F.softplus(-best_common) - obj, lost)
    return torch.where(gap > _LEAST_GAP, restricted, obj)


def compare_heads(
    student: HeadSpec, teacher: HeadSpec, wanted: Sequence[str] | None = None
) -> tuple[HeadView, HeadView, str]:
    """Views of two heads on the strides and classes that both have, and a line on what is left out.

    Args:
        student, teacher: the heads.
        wanted: names of the classes to compare; None: all that both have.

    Raises:
        DistillError: no stride or no class is common.
    """
    strides = [stride for stride in student.strides if stride in teacher.strides]
    if not strides:
        raise DistillError(
            f"the student's head has strides {student.strides}, the teacher's {teacher.strides}, none in common; "
            "choose networks with equal strides, or distil features only"
        )
    match = match_classes(student, teacher, wanted)
    notes = [match.note] if match.note else []
    if set(strides) != {*student.strides, *teacher.strides}:
        notes.append(f"heads are compared at the strides {', '.join(map(str, strides))} that both have")
    return HeadView(student, strides, match.student), HeadView(teacher, strides, match.teacher), "; ".join(notes)


def view_heads(
    student: HeadSpec | None, teacher: HeadSpec | None, wanted: Sequence[str] | None, needed: bool
) -> tuple[HeadView | None, HeadView | None, str]:
    """Views of what is known of two heads, on what both have where both are known, and a line on what is left out.

    Args:
        student, teacher: the heads; None: not known.
        wanted: names of the classes to compare; None: all that both have.
        needed: whether a loss looks at heads; without one, nothing need be in common.

    Raises:
        DistillError: nothing is in common, and something has to be.
    """
    if student is not None and teacher is not None:
        try:
            return compare_heads(student, teacher, wanted)
        except DistillError:
            if needed or wanted is not None:
                raise
            return None, None, ""
    whole = [
        None if head is None else HeadView(head, head.strides, range(head.num_classes)) for head in (student, teacher)
    ]
    return whole[0], whole[1], ""
