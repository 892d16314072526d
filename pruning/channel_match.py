"""Which channel of a teacher each channel of a student is, for every layer of a pair of `pruning.pairing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS, Forward, Segment, trace_groups
from pruning.pairing import Twins, main_sources, rows_of

FRESH = -1
ClassPairs = Sequence[tuple[int, int]]
Places = dict[tuple[str, str], Tensor]
Signature = tuple[tuple[str, str], ...]
Choice = Callable[[Segment, int], Tensor]


@dataclass(frozen=True)
class Match:
    """Channels of both networks with the same connections; in each the names are those of its copy's original."""

    student: Segment
    teacher: Segment


def match_channels(
    twins: Twins, classes: ClassPairs, choose: Choice, forward: Forward, images: tuple[Tensor, Tensor]
) -> Places:
    """Finds the teacher's channel of each of the student's.

    Args:
        twins: the pair.
        classes: pairs of a class of the student and the same class of the teacher.
        choose: from a segment of the teacher and how many of its channels stay, which of them do, ascending.
        forward: runs a network.
        images: (1, C, H, W) for the student and for the teacher.

    Returns:
        For each (path in the student's copy, side) where channels can differ, the teacher's channel of each of the
        student's channels, or FRESH.

    Raises:
        PruneError: the channels of the two are connected in different ways; names the row.
    """
    outputs = output_channels(twins, classes)
    places: Places = {}
    for match in match_segments(twins, forward, images):
        ours, theirs = match.student, match.teacher
        makers = [port.name for port in ours.places if port.side == "out"]
        output = next((outputs[name] for name in makers if name in outputs), None)
        if output is not None:
            chosen = output
        elif ours.size == theirs.size:
            chosen = torch.arange(ours.size)
        elif theirs.reason or ours.reason:
            raise PruneError(
                f"row {_row(ours)} ({_name(ours)}): its {theirs.size} channels in the teacher cannot become "
                f"{ours.size}: {theirs.reason or ours.reason}"
            )
        elif ours.size < theirs.size:
            chosen = choose(theirs, ours.size)
        else:
            chosen = torch.cat((torch.arange(theirs.size), torch.full((ours.size - theirs.size,), FRESH)))
        _enter(places, match, chosen)
    _check_covered(twins, places)
    return places


def _enter(places: Places, match: Match, chosen: Tensor) -> None:
    """Writes the teacher's channels of a segment into those of every layer that it goes through."""
    theirs = {(port.name, port.side): at for port, at in match.teacher.places.items()}
    inherited = chosen != FRESH
    for port, at in match.student.places.items():
        place = (port.name, port.side)
        if place not in theirs:
            continue  # a part for training that only the student has
        if place not in places:
            places[place] = torch.full((port.width,), FRESH - 1)
        places[place][at] = torch.where(inherited[:, None], theirs[place][chosen.clamp(min=0)], FRESH)


def _check_covered(twins: Twins, places: Places) -> None:
    """Pairs the channels that no layer makes, those of the image, one by one."""
    mine, other = dict(twins.student.named_modules()), dict(twins.teacher.named_modules())
    for name, module in mine.items():
        partner = other.get(twins.as_teacher(name))
        if not isinstance(module, CONVOLUTIONS) or not isinstance(partner, CONVOLUTIONS):
            continue
        for side, width, its in (
            ("in", module.in_channels, partner.in_channels),
            ("out", module.out_channels, partner.out_channels),
        ):
            index = places.setdefault((name, side), torch.full((width,), FRESH - 1))
            if bool((index >= FRESH).all()):
                continue
            if width != its:
                raise PruneError(
                    f"row {name.split('.')[1]} ({name}): {width} channels in the student, {its} in the teacher, and "
                    "they cannot be followed through the network"
                )
            places[name, side] = torch.where(index < FRESH, torch.arange(width), index)


def match_segments(twins: Twins, forward: Forward, images: tuple[Tensor, Tensor]) -> list[Match]:
    """Pairs the segments of two networks, in the order of the student's.

    Raises:
        PruneError: they have other segments; names the row of the first that differs.
    """
    ours = _segments(twins.student, forward, images[0])
    theirs = [_renamed(segment, twins) for segment in _segments(twins.teacher, forward, images[1])]
    known = [{(port.name, port.side) for segment in part for port in segment.places} for part in (ours, theirs)]
    common = known[0] & known[1]
    waiting: dict[Signature, list[Segment]] = {}
    for segment in theirs:
        waiting.setdefault(_signature(segment, common), []).append(segment)
    matches = []
    for segment in ours:
        signature = _signature(segment, common)
        if not signature:
            continue  # of auxiliary maps, or of what only the student has
        found = waiting.get(signature)
        if not found:
            raise PruneError(_tied(segment))
        partner = found.pop(0)
        counts = [
            {(port.name, port.side): at.shape[1] for port, at in one.places.items() if (port.name, port.side) in common}
            for one in (segment, partner)
        ]
        if counts[0] != counts[1]:
            raise PruneError(_tied(segment))
        matches.append(Match(segment, partner))
    left = [found[0] for signature, found in waiting.items() if signature and found]
    if left:
        raise PruneError(_tied(left[0]))
    return matches


def _segments(model: nn.Module, forward: Forward, image: Tensor) -> list[Segment]:
    return [segment for group in trace_groups(model, image, forward) for segment in group.segments]


def _renamed(segment: Segment, twins: Twins) -> Segment:
    """A teacher's segment by the paths of the student's copy; without what no row of the student is paired with."""
    renamed = ((replace(port, name=twins.as_student(port.name)), at) for port, at in segment.places.items())
    return Segment({port: at for port, at in renamed if port.name}, segment.reason)


def _signature(segment: Segment, common: set[tuple[str, str]]) -> Signature:
    return tuple(sorted((port.name, port.side) for port in segment.places if (port.name, port.side) in common))


def _tied(segment: Segment) -> str:
    return (
        f"row {_row(segment)} ({_name(segment)}) differs: its channels are connected with others in one network and "
        "not in the other, as by a shortcut, which needs equal widths"
    )


def _name(segment: Segment) -> str:
    return next((port.name for port in segment.places if port.side != "in"), next(iter(segment.places)).name)


def _row(segment: Segment) -> str:
    return _name(segment).split(".")[1]


def output_channels(twins: Twins, classes: ClassPairs) -> dict[str, Tensor]:
    """The teacher's channel of each channel that a network returns, by the path of the convolution that makes it."""
    row, its = twins.rows[-1]
    ours, theirs = rows_of(twins.student, "student"), rows_of(twins.teacher, "teacher")
    head, other = ours[row], theirs[its]
    names = {module: name for name, module in twins.student.named_modules()}
    if hasattr(head, "na"):
        layers: list[Any] = head.prediction_convolutions([ours[i] for i in main_sources(ours, row)])  # type: ignore[operator]
        index = _anchor_channels(head, other, classes)
        return {names[layer]: index for layer in layers}
    if not hasattr(head, "cv2") or not hasattr(head, "cv3"):
        raise PruneError(f"row {row} ({head.type}) is a head whose outputs nobody knows to hand on; start from scratch")
    found = {}
    for box, scores in zip(head.cv2, head.cv3):  # type: ignore[arg-type]
        found[names[box[-1]]] = torch.arange(box[-1].out_channels)
        found[names[scores[-1]]] = _class_channels(scores[-1].out_channels, classes)
    return found


def _class_channels(width: int, classes: ClassPairs) -> Tensor:
    index = torch.full((width,), FRESH)
    for mine, other in classes:
        index[mine] = other
    return index


def _anchor_channels(head: Any, other: Any, classes: ClassPairs) -> Tensor:
    """Anchor by anchor what comes before the classes, then the classes; nothing where the anchors' numbers differ."""
    if head.na != other.na:
        return torch.full((head.na * head.no,), FRESH)
    first = int(head.no - head.nc)
    each = torch.cat((torch.arange(first), _class_channels(int(head.nc), [(m, o + first) for m, o in classes])))
    return torch.cat([torch.where(each == FRESH, FRESH, each + anchor * int(other.no)) for anchor in range(head.na)])
