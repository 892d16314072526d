"""XML of unknown origin as a tree: without entities, which may blow up or read files, and in bounded depth."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any
from xml.parsers import expat

MAX_DEPTH = 50
# Encodings of more than one byte that expat does not know and annotation tools write.
MULTI_BYTE = frozenset({"gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "cp936", "cp949", "cp932"})
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,100}encoding\s*=\s*["']([\w.-]{1,40})["']""")


class XmlError(ValueError):
    """What cannot be read as XML, in one short line."""


def parse_xml(content: bytes) -> ElementTree.Element:
    """The root element of an XML document.

    Raises:
        XmlError: it is not well-formed, declares an entity, is nested too deeply, or has an unknown encoding.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise XmlError(f"elements are nested more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_entity(*declaration: Any) -> None:
        raise XmlError("it declares an entity, which no annotation needs")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse_entity
    try:
        parser.Parse(_decoded(content), True)
        return builder.close()
    except XmlError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: unknown encodings
        raise XmlError(str(error)[:100]) from error


def _decoded(content: bytes) -> bytes | str:
    """The document, as text where expat does not know its encoding."""
    declared = _DECLARED.match(content)
    encoding = declared.group(1).decode().lower() if declared else ""
    return content.decode(encoding) if encoding in MULTI_BYTE else content
