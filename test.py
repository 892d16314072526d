"""Measures a detector: `python test.py --weights best.pt --data data/synthetic.yaml`."""

from __future__ import annotations

import argparse

from utils.running.cli import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    """Upstream YOLOv7's flags and defaults, with YOLOv5's spellings as aliases."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = CommandParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--weights", nargs="+", default=["yolov7.pt"], help="checkpoints or exported files; several are an ensemble")
    add("--data", default="data/coco.yaml", help="data set yaml")
    add("--batch-size", "--batch", type=int, default=32)
    add("--img-size", "--img", "--imgsz", type=int, default=640, help="longer side of the network input in pixels")
    add("--conf-thres", type=float, default=0.001, help="confidence a detection must exceed")
    add("--iou-thres", type=float, default=0.65, help="overlap above which the weaker box is dropped")
    add("--max-det", type=int, default=300, help="detections per image")
    tasks = ["val", "test", "train", "speed", "study"]
    add("--task", choices=tasks, default="val", help="a split; speed: time at 0.25/0.45; study: many image sizes")
    add("--device", default="", help="cpu, 0, or cuda:0; the first GPU when there is one")
    add("--single-cls", action="store_true", help="all objects are one class")
    add("--augment", action="store_true", help="test-time augmentation")
    add("--verbose", action="store_true", help="a line for each class, however many there are")
    add("--save-txt", action="store_true", help="write the detections as label files")
    add("--save-hybrid", action="store_true", help="write label files of labels and detections together")
    add("--save-conf", action="store_true", help="with the confidence in the label files")
    add("--save-json", action="store_true", help="write the detections in COCO's format; always with coco.yaml")
    add("--annotations", default="", help="COCO annotation file to measure those against, with its crowds and areas")
    add("--project", default="runs/test", help="folder of the runs")
    add("--name", default="exp", help="name of this run's folder in it")
    add("--exist-ok", action="store_true", help="write into that folder even if it exists")
    add("--no-trace", action="store_true", help="accepted for upstream's sake; nothing is traced")
    add("--v5-metric", action="store_true", help="YOLOv7's own AP with YOLOv5's recall axis")
    add("--half", action="store_true", help="float16 on a GPU")
    add("--trust", action="store_true", help="run a TorchScript file, which is a program and may do anything")
    add("--workers", type=int, default=8, help="processes that load images")
    add("--noplots", action="store_true", help="draw nothing")
    return parser


def main() -> None:
    """Parses the flags and measures."""
    namespace = build_parser().parse_args()
    from engine.inference.testing import TestOptions, run_test
    from utils.logging import setup_logging

    setup_logging()
    flags = vars(namespace)
    del flags["no_trace"]
    if namespace.task == "speed":
        flags |= {"conf_thres": 0.25, "iou_thres": 0.45}
    run_test(TestOptions(**flags | {"weights": tuple(namespace.weights)}))


if __name__ == "__main__":
    run_command(main)
