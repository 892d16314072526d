"""Reading annotations in Pascal VOC's form: one XML file an image, lists of names for the splits."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.converters.writing import AnnotatedImage, Annotation, Report, assign_splits, class_name, numbers, stated_size
from data.converters.xml_tree import XmlError, parse_xml
from data.decoding.files import read_regular, reason
from data.decoding.images import IMAGE_SUFFIXES
from data.lists import read_lines
from utils.errors import UserError
from utils.text import printable, shown_path

IMAGE_FOLDERS = ("JPEGImages", "images")
MAX_XML_BYTES = 32 << 20
PRESENCE = ("-1", "0", "1")  # behind a name in VOC's lists of one class


def read_voc(
    sources: Sequence[Path],
    report: Report,
    *,
    lists: str = "ImageSets/Main",
    split_files: Mapping[str, str],
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    keep_difficult: bool = False,
    pixel_origin: int = 1,
) -> list[AnnotatedImage]:
    """Reads VOC folders, each with Annotations/, JPEGImages/ and lists of names.

    VOC counts pixels from 1 and includes both corners, so the box xmin ... xmax covers xmin - 1 ... xmax on an axis
    that begins at 0 on the image's edge. Tools that write corners on that axis themselves need `pixel_origin=0`.

    Args:
        sources: the folders, such as VOCdevkit/VOC2007.
        report: is added to.
        lists: folder of the lists below each source.
        split_files: our split -> list without .txt, such as {"train": "trainval", "val": "test"}.
        ratios: deal all annotated images to splits in these ratios rather than by lists.
        seed: for `ratios`.
        keep_difficult: keep objects marked as difficult.
        pixel_origin: number of the first pixel, 0 or 1.

    Raises:
        UserError: a folder or every list is missing, or two lists name the same image.
    """
    images = []
    for source in sources:
        folder = source / "Annotations"
        if not folder.is_dir():
            raise UserError(f"--source {shown_path(source)} has no folder Annotations; name the folder that holds it")
        if ratios:
            stems = sorted(path.stem for path in folder.glob("*.xml"))
            splits = [(stem, split) for stem, split in sorted(assign_splits(stems, ratios, seed).items())]
        else:
            splits = _listed(source / lists, split_files)
        files = _image_files(source)
        for stem, split in splits:
            path = folder / f"{stem}.xml"
            if not os.path.isfile(path):
                report.leave_out("images without an annotation file", str(path))
                continue
            try:
                root = parse_xml(read_regular(path, MAX_XML_BYTES))
            except OSError as error:
                report.leave_out("images whose annotation file cannot be read", f"{path}: {reason(error)}")
                continue
            except XmlError as error:
                report.leave_out("images whose annotation file is not valid XML", f"{path}: {error}")
                continue
            found = files.get(stem, [source / IMAGE_FOLDERS[0] / f"{stem}.jpg"])
            image = _image_of(root, found, path, report)
            objects = _read_objects(root, path, report, keep_difficult, pixel_origin)
            size = stated_size(root.findtext("size/width"), root.findtext("size/height"))
            images.append(AnnotatedImage(image, image.name, split, objects, size))
    return images


def _image_of(root: ElementTree.Element, found: Sequence[Path], path: Path, report: Report) -> Path:
    """Of several files of one stem the one that the annotation names."""
    named = [image for image in found if image.name == (root.findtext("filename") or "").strip()]
    image = (named or found)[0]
    if len(found) > 1 and not named:
        report.leave_out("images of which several files have the name", f"{path}: {image.name} is taken")
    return image


def _listed(folder: Path, split_files: Mapping[str, str]) -> list[tuple[str, str]]:
    """(stem, split) of each name in the lists that exist; a name in two of them is an error."""
    found: dict[str, str] = {}
    present = {
        split: folder / f"{name}.txt" for split, name in split_files.items() if (folder / f"{name}.txt").is_file()
    }
    if not present:
        wanted = ", ".join(f"{name}.txt" for name in split_files.values())
        raise UserError(
            f"{shown_path(folder)} has none of {wanted}; name the lists with --splits, or give --split-ratios"
        )
    for split, path in present.items():
        for line in read_lines(path, "the list"):
            words = line.rsplit(maxsplit=1)
            stem = words[0] if words[-1] in PRESENCE else line
            if found.setdefault(stem, split) != split:
                raise UserError(
                    f"{shown_path(path)} names {printable(stem, 80)}, which is in the {found[stem]} split already; "
                    "remove it there"
                )
    return list(found.items())


def _image_files(source: Path) -> dict[str, list[Path]]:
    """Image files by their stem, those of the first folder first."""
    found = defaultdict(list)
    for folder in (source / name for name in IMAGE_FOLDERS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found[path.stem].append(path)
    return found


def _read_objects(
    root: ElementTree.Element, path: Path, report: Report, keep_difficult: bool, pixel_origin: int
) -> tuple[Annotation, ...]:
    annotations = []
    for element in root.iter("object"):
        name = class_name(element.findtext("name") or "")
        where = f"{path}: {name}"
        if not name:
            report.leave_out("objects without a name, or with one that is too long", where)
            continue
        if not keep_difficult and (element.findtext("difficult") or "0").strip() == "1":
            report.leave_out("difficult objects (--keep-difficult keeps them)", where)
            continue
        try:
            written = [float(element.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            written = []
        corners = numbers(written, 4)
        if corners is None:
            report.leave_out("objects without a readable bndbox", where)
            continue
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:  # before the shift below gives it one pixel
            report.leave_out("boxes of zero or negative size", f"{where} {x1:g} {y1:g} {x2:g} {y2:g}")
            continue
        annotations.append(Annotation(name, (x1 - pixel_origin, y1 - pixel_origin, x2, y2)))
    return tuple(annotations)
