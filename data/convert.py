"""Makes a data set in YOLO's format from Pascal VOC or COCO annotations.

    python -m data.convert voc  --source VOCdevkit/VOC2007 --out datasets/voc --splits train=trainval val=test
    python -m data.convert coco --annotations instances_train2017.json instances_val2017.json --images coco/images \
                                --out datasets/coco
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.config import SPLITS
from data.converters.coco import read_coco, split_of
from data.converters.voc import read_voc
from data.converters.writing import Report, class_name, write_dataset
from utils.errors import UsageError
from utils.logging import LOGGER, setup_logging
from utils.running.cli import CommandParser, run_command
from utils.text import shown


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser("data.convert", description="VOC or COCO annotations to a data set in YOLO's format")
    formats = parser.add_subparsers(dest="format", required=True)
    voc = formats.add_parser("voc", help="Pascal VOC: Annotations/*.xml, JPEGImages, ImageSets/Main/*.txt")
    voc.add_argument("--source", type=Path, nargs="+", required=True, help="folders that hold Annotations/")
    voc.add_argument("--lists", default="ImageSets/Main", help="folder of the split lists below each source")
    voc.add_argument(
        "--splits",
        nargs="+",
        default=SPLITS,
        metavar="SPLIT[=LIST]",
        help="which list makes which split: train=trainval val=test",
    )
    voc.add_argument("--names", default="found", help="class names in order, a,b,c; default: those found, sorted")
    voc.add_argument("--keep-difficult", action="store_true", help="keep objects marked as difficult")
    voc.add_argument("--pixel-origin", type=int, choices=(0, 1), default=1, help="number of the first pixel, 1 in VOC")
    coco = formats.add_parser("coco", help="COCO: one JSON file a split")
    coco.add_argument("--annotations", nargs="+", required=True, metavar="[SPLIT=]FILE")
    coco.add_argument("--images", type=Path, required=True, help="folder that the file names count from")
    coco.add_argument("--keep-crowd", action="store_true", help="keep regions marked as iscrowd")
    coco.add_argument("--segments", action="store_true", help="keep outlines of one polygon, which copy-paste needs")
    for command in (voc, coco):
        command.add_argument("--out", type=Path, required=True, help="new folder")
        command.add_argument(
            "--split-ratios", type=float, nargs="+", metavar="SHARE", help="train val [test], such as 0.8 0.2"
        )
        command.add_argument("--seed", type=int, default=0, help="of --split-ratios")
        how = command.add_mutually_exclusive_group()
        how.add_argument(
            "--link", dest="copy", action="store_false", default=False, help="link to the images (default)"
        )
        how.add_argument("--copy", dest="copy", action="store_true", help="copy the images")
        command.set_defaults(copy=False)
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> tuple[Path, Report]:
    """Does what the command line asks; returns the data yaml's path and the counts."""
    report = Report()
    if args.format == "voc":
        split_files = dict(_split_pair(spec) for spec in args.splits)
        images = read_voc(
            args.source,
            report,
            lists=args.lists,
            split_files=split_files,
            ratios=args.split_ratios,
            seed=args.seed,
            keep_difficult=args.keep_difficult,
            pixel_origin=args.pixel_origin,
        )
        found = sorted({annotation.class_name for image in images for annotation in image.annotations})
        names = found if args.names == "found" else _given_names(args.names)
    else:
        images, names = read_coco(
            [split_of(spec) for spec in args.annotations],
            args.images,
            report,
            ratios=args.split_ratios,
            seed=args.seed,
            keep_crowd=args.keep_crowd,
            segments=args.segments,
        )
    return write_dataset(images, names, args.out, report, copy=args.copy), report


def _given_names(text: str) -> list[str]:
    names = [class_name(name) for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--names {shown(text)}: expected different names such as cat,dog")
    return names


def _split_pair(spec: str) -> tuple[str, str]:
    split, _, name = spec.partition("=")
    if split not in SPLITS:
        raise UsageError(f"--splits {spec}: expected {', '.join(SPLITS)}, or such as train=trainval")
    return split, (name or split).removesuffix(".txt")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parse_args(argv)
    setup_logging()
    path, report = convert(args)
    LOGGER.info(f"{report.text()}\n{path} written")


if __name__ == "__main__":
    run_command(main)
