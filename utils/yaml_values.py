"""The values of a yaml text, read so that a file cannot mean something else than its author sees.

Yaml 1.1, as PyYAML reads it, takes `1:30` for 90, `010` for 8, `no` in a list of names for false, and the last of two
equal keys. Here a number is a plain decimal (or 0x) number, a key is always text, a key that stands twice is refused,
and the keys that a caller names hold text as it is written. Nesting and the size that aliases blow a file up to are
bounded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import yaml

from utils.text import printable, shown

MAX_DEPTH = 64
MAX_VALUES = 250_000
"""Values of a file, those that aliases repeat counted each time."""
MAX_PARSED_AGAIN = 1 << 14
"""Characters of a text that is parsed a second time, for a clearer message."""
MAX_DIGITS = 18
"""Digits of a whole number: what fits 64 bits, as torch, numpy and files need it."""

_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)")
_REAL = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?")
_LIMITS = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NOTHING = ("", "~", "null", "Null", "NULL")
_SWITCHES = {
    spelling: state
    for state, words in ((True, "true yes on"), (False, "false no off"))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
}
_STANDARD_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"

Event = Any  # of PyYAML, whose stubs know neither anchors nor tags


class YamlTextError(ValueError):
    """Text that is not read; `line` counts from 1, or is None where no place can be named."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.column = column


def read_yaml(text: str, texts: Collection[str] = (), filled: Collection[str] = ()) -> Any:
    """The one document of a yaml text as plain values.

    Args:
        text: the content of a file.
        texts: keys below which everything is text as it is written: `names: [no, 010]` gives "no" and "010". Nothing
            (`~`, null or no value) stays None there too.
        filled: keys below which every key needs a value: `fgd:` is refused, `fgd: null` is not.

    Raises:
        YamlTextError: no yaml, a key that stands twice or is no text, too deep, too many values, a number that is too
            long, a tag, or no value where one is needed.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Reader(yaml.parse(text, Loader=loader), texts, filled).document()
    except yaml.YAMLError as error:
        raise _explained(error, text) from error


def _explained(error: yaml.YAMLError, text: str) -> YamlTextError:
    if len(text) <= MAX_PARSED_AGAIN and "nesting" not in str(error):
        try:  # slower, but its messages say more
            for _ in yaml.parse(text, Loader=yaml.SafeLoader):
                pass
        except yaml.YAMLError as clearer:
            error = clearer
    mark = getattr(error, "problem_mark", None)
    if mark and mark.line >= len(text.splitlines()):  # at the end: where it began tells more
        mark = getattr(error, "context_mark", None) or mark
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid yaml"
    if mark:
        return YamlTextError(printable(reason, 200), mark.line + 1, mark.column + 1)
    position = getattr(error, "position", None)  # of a character that yaml does not allow
    return YamlTextError(printable(reason, 200), None if position is None else text.count("\n", 0, position) + 1)


class _Reader:
    """Builds values from the events of PyYAML's parser. `count` is the number of values so far."""

    def __init__(self, events: Iterator[Event], texts: Collection[str], filled: Collection[str]) -> None:
        self.events = events
        self.texts = texts
        self.filled = filled
        self.below = 0  # levels below one of `filled`; 0 outside
        self.count = 0
        self.anchors: dict[str, tuple[Any, int] | None] = {}

    def document(self) -> Any:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self.events), 0, False)
        next(self.events)  # the end of the document
        following = next(self.events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _error("a second document begins (`---`); keep one", following)
        return value

    def _value(self, event: Event, depth: int, as_text: bool) -> Any:
        before = self.count
        self._add(1, event)
        if isinstance(event, yaml.AliasEvent):
            return self._repeated(event)
        if depth > MAX_DEPTH:
            raise _error(f"not valid yaml: values are nested more than {MAX_DEPTH} deep", event)
        if event.anchor is not None:
            self.anchors[event.anchor] = None  # not complete: an alias inside would lead back to it
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, as_text)
        elif isinstance(event, yaml.SequenceStartEvent):
            _check_tag(event, "seq")
            value = []
            while not isinstance(entry := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(entry, depth + 1, as_text))
        else:
            _check_tag(event, "map")
            value = self._mapping(depth, as_text)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.count - before)
        return value

    def _mapping(self, depth: int, as_text: bool) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._key(event)
            line = event.start_mark.line + 1
            if key in lines:
                places = f"line {lines[key]} and again in line {line}"
                raise _error(f"the key {shown(key)} stands in {places}; keep one", event)
            lines[key] = line
            value = self._entry(key, event, depth, as_text)
            if key == _MERGE and isinstance(event, yaml.ScalarEvent) and not event.style:
                for source in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(source, dict):
                        raise _error("`<<:` merges mappings only", event)
                    merged |= source
            else:
                own[key] = value
        return merged | own

    def _entry(self, key: str, place: Event, depth: int, as_text: bool) -> Any:
        """The value of a key."""
        event = next(self.events)
        if self.below and isinstance(event, yaml.ScalarEvent) and not (event.value or event.style or event.tag):
            name = printable(key, 40)
            remedy = f"`{name}: {{}}` for its defaults" if self.below == 1 else "its value"
            raise _error(f"`{name}:` has no value; write {remedy}, or null to take it out of what a base says", place)
        outside = self.below
        self.below = outside + 1 if outside or key in self.filled else 0
        value = self._value(event, depth + 1, as_text or key in self.texts)
        self.below = outside
        return value

    def _key(self, event: Event) -> str:
        if isinstance(event, yaml.AliasEvent):
            key = self._repeated(event)
        else:
            self._add(1, event)
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(key, str):
            raise _error("a key must be text", event)
        if getattr(event, "anchor", None) and isinstance(event, yaml.ScalarEvent):
            self.anchors[str(event.anchor)] = (key, 1)
        return key

    def _repeated(self, event: Event) -> Any:
        if event.anchor not in self.anchors:
            raise _error(f"the alias *{printable(event.anchor, 40)} has no anchor before it", event)
        known = self.anchors[event.anchor]
        if known is None:
            raise _error(f"the alias *{printable(event.anchor, 40)} stands inside what it names", event)
        value, size = known
        self._add(size, event)
        return value

    def _add(self, number: int, event: Event) -> None:
        self.count += number
        if self.count > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES} values, those that aliases repeat counted each time", event)


def _scalar(event: Event, as_text: bool) -> Any:
    """A value that is no list and no mapping; what is quoted is text."""
    text = event.value
    tag = (event.tag or "").removeprefix(_STANDARD_TAG)
    if tag not in ("", "!", "str", "int", "float", "bool", "null"):
        raise _error(f"the tag {shown(event.tag)} has no meaning here; leave it out", event)
    if tag in ("!", "str") or (not tag and event.style):
        return text
    if text in _NOTHING:
        return None
    if as_text:
        return text
    if text in _SWITCHES:
        return _SWITCHES[text]
    if _WHOLE.fullmatch(text):
        if len(text.lstrip("+-0x")) > MAX_DIGITS:
            raise _error(f"a number of {len(text)} digits; a whole number has at most {MAX_DIGITS}", event)
        return int(text, 0)
    if _LIMITS.fullmatch(text):
        return float(text.replace(".", "", 1))
    if _REAL.fullmatch(text):
        return float(text)
    return text


def _check_tag(event: Event, kind: str) -> None:
    if event.tag not in (None, "!", _STANDARD_TAG + kind):
        raise _error(f"the tag {shown(event.tag)} has no meaning here; leave it out", event)


def _error(reason: str, event: Event) -> YamlTextError:
    return YamlTextError(reason, event.start_mark.line + 1, event.start_mark.column + 1)
