"""The answer of a comparison in words: one sentence, and the notes without which it would mislead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.comparing.arms import SCRATCH, Arm
from engine.comparing.summary import TEACHER, enough_seeds, power_note, ratio_of_parameters
from engine.reporting.statistics import GAIN, LOSS, MIN_SEEDS, POWER

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
VERDICTS = {GAIN: "", LOSS: ": a loss"}


def points(value: float) -> str:
    """A difference of AP in points, with its sign: 0.098 is +9.8."""
    return f"{100 * value + 0.0:+.1f}".replace("-0.0", "+0.0")


def point_range(interval: Sequence[float]) -> str:
    """An interval of AP in points: 8.9 to 10.7."""
    low, high = (f"{100 * bound + 0.0:.1f}".replace("-0.0", "0.0") for bound in interval)
    return f"{low} to {high}"


def number_word(number: int) -> str:
    """A number as text writes it."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def answer(summary: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm], entry: Mapping[str, Any] | None) -> str:
    """One sentence on what an arm brings over the baseline, and what of it is the distillation's.

    Args:
        summary: of `summarise`.
        arms: as `describe_arms` gives them, the baseline first.
        entry: the arm's row of the summary; None where there is none to speak of.
    """
    if entry is None:
        return "There is no arm to compare with the baseline."
    difference, arm, baseline = entry["difference"], arms[entry["role"]], next(iter(arms.values()))
    alike = [each for each in arms.values() if each.kind == arm.kind]
    name = arm.kind.capitalize() if arm.kind and len(alike) == 1 else entry["role"]
    if arm.kind and len(alike) > 1:
        name = f"{arm.kind.capitalize()} ({entry['role']})"
    other = "the same student from scratch" if baseline.start == SCRATCH and not baseline.kind else baseline.name
    text = f"{name}: {points(difference['mean'])} AP over {other}"
    claimable = enough_seeds(difference) and arm.equal_epochs
    if claimable:
        text += f" (95 % interval {point_range(difference['interval'])})"
    if entry.get("share"):
        text += f", {100 * entry['share']['mean']:.0f} % of the gap"
    if claimable:
        text += VERDICTS.get(difference["verdict"], f": {difference['verdict']}")
    if entry.get("added"):
        text += f"; of this, {_added(entry['added'], arms, claimable)}"
    number = len(difference["seeds"])
    text += f"; better with {difference['better']} of {number} seed{'s' if number > 1 else ''}."
    if not enough_seeds(difference):
        text += f" Too few seeds for a claim: {number_word(MIN_SEEDS)} are the least."
    elif not arm.equal_epochs:
        text += f" No claim: it was trained for {arm.epochs} epochs, the baseline for {baseline.epochs}."
    return text


def _added(added: Mapping[str, Any], arms: Mapping[str, Arm], claimable: bool) -> str:
    """What distillation adds over the arm that differs in it alone."""
    other = arms[added["to"]]
    text = f"distillation adds {points(added['mean'])}"
    interval = added["interval"] if claimable and enough_seeds(added) else None
    if interval:
        text += f" ({point_range(interval)})"
    text += " over inheritance" if other.kind == "inherited" else f" over {other.name}"
    return text + (VERDICTS.get(added["verdict"], f": {added['verdict']}") if interval else "")


def notes(
    summary: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm], entry: Mapping[str, Any] | None, teacher_start: str
) -> Iterator[str]:
    """What a reader of the sentence and the table must know, a sentence or two each.

    Args:
        summary, arms, entry: as of `answer`.
        teacher_start: file that the teacher's training began from; empty for none.
    """
    baseline = next(iter(arms.values()))
    ratio = entry and ratio_of_parameters(summary, entry["role"])
    if ratio:
        yield f"The teacher has {ratio:.1f} times the parameters of the student."
    if any(each["role"] == TEACHER for each in summary) and not any(each.get("share") for each in summary):
        yield "The teacher is no better than the baseline here: there is no gap to close."
    inheriting = [arm.name for arm in arms.values() if arm.start == "inherited"]
    if teacher_start and inheriting and baseline.start == SCRATCH:
        yield (
            f"The teacher began from given weights ({teacher_start}). What inherits from it ({', '.join(inheriting)}) "
            f"has part of those too; {baseline.name}, which starts from scratch, has not."
        )
    for arm in arms.values():
        if not arm.equal_epochs:
            yield (
                f"{arm.name} was trained for {arm.epochs} epochs, {baseline.name} for {baseline.epochs}: it is shown "
                "for comparison, and nothing is claimed of it."
            )
    yield from _missing_seeds(summary, arms)
    if entry:
        yield from _power(entry)
    compared = sum(1 for each in summary if each.get("difference") and each["equal_epochs"])
    if entry and compared > 1:
        yield (
            f"The sentence speaks of {entry['role']}, which the experiment file and not the result chose; the "
            f"intervals of the {number_word(compared)} comparisons are not corrected for their number."
        )


def _missing_seeds(summary: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> Iterator[str]:
    baseline = next((each for each in summary if each["role"] == next(iter(arms))), None)
    for each in summary:
        found = each.get("difference")
        if found and baseline and len(found["seeds"]) < max(each["runs"], baseline["runs"]):
            kept = ", ".join(map(str, found["seeds"]))
            yield f"{each['role']} and {baseline['role']} share only the seeds {kept}: the others are left out of both."


def _power(entry: Mapping[str, Any]) -> Iterator[str]:
    if len(entry["difference"]["seeds"]) < 2:
        return
    found = power_note(entry["difference"])
    spread, difference = f"{found['spread']:.4f}", f"{found['difference']:g}"
    start = f"With this spread of the differences ({spread})"
    chance = f"with a chance of {POWER:.0%}".replace("%", " %")
    if found["seeds"] is None:
        yield f"{start}, no number of seeds that could be trained would show a difference of {difference}."
    else:
        yield f"{start}, {number_word(found['seeds'])} seeds would show a difference of {difference} {chance}."
