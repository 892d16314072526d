"""Detects on images, videos, cameras and streams: `python detect.py --weights best.pt --source images/`."""

from __future__ import annotations

import argparse

from utils.running.cli import CommandParser, run_command

OUTPUT_FLAGS = ("save_txt", "save_conf", "save_csv", "save_crop", "line_thickness", "hide_labels", "hide_conf")


def build_parser() -> argparse.ArgumentParser:
    """Upstream YOLOv7's flags and defaults, with what YOLOv5 has besides."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = CommandParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--weights", nargs="+", default=["yolov7.pt"], help="checkpoints or exported files; several are an ensemble")
    add(
        "--source",
        default="inference/images",
        help="image, video, folder, glob, .txt list, camera number, stream address",
    )
    add("--data", default="", help="data set yaml whose class names replace the checkpoint's")
    add("--img-size", "--imgsz", "--img", nargs="+", type=int, default=[640], help="longer side, or height and width")
    add("--conf-thres", type=float, default=0.25, help="confidence a detection must exceed")
    add("--iou-thres", type=float, default=0.45, help="overlap above which the weaker box is dropped")
    add("--max-det", type=int, default=300, help="detections per image")
    add("--device", default="", help="cpu, 0, or cuda:0; the first GPU when there is one")
    add("--view-img", action="store_true", help="show the results in a window")
    add("--save-txt", action="store_true", help="write label files")
    add("--save-conf", action="store_true", help="with the confidence in the label files")
    add("--save-csv", action="store_true", help="write all detections into predictions.csv")
    add("--save-crop", action="store_true", help="write each detection's part of the image")
    add("--nosave", action="store_true", help="write no pictures and videos")
    add("--classes", nargs="+", type=int, default=None, help="keep these classes only")
    add("--agnostic-nms", action="store_true", help="boxes of different classes suppress one another")
    add("--augment", action="store_true", help="test-time augmentation")
    add("--half", action="store_true", help="float16 on a GPU")
    add("--trust", action="store_true", help="run a TorchScript file, which is a program and may do anything")
    add("--vid-stride", type=int, default=1, help="take every so-manieth frame of a video")
    add("--line-thickness", type=int, default=None, help="of the boxes in pixels; follows the image without it")
    add("--hide-labels", action="store_true", help="draw boxes without captions")
    add("--hide-conf", action="store_true", help="draw captions without confidences")
    add("--project", default="runs/detect", help="folder of the runs")
    add("--name", default="exp", help="name of this run's folder in it")
    add("--exist-ok", action="store_true", help="write into that folder even if it exists")
    add("--no-trace", action="store_true", help="accepted for upstream's sake; nothing is traced")
    add("--update", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Parses the flags and detects."""
    flags = vars(build_parser().parse_args())
    from engine.inference.predict import OutputOptions, PredictOptions, run_predict
    from utils.errors import UsageError
    from utils.logging import setup_logging

    setup_logging()
    del flags["no_trace"]
    if flags.pop("update"):
        raise UsageError("--update is not built in; `python -m checkpoints convert IN OUT` strips a checkpoint")
    output = OutputOptions(save_images=not flags.pop("nosave"), **{name: flags.pop(name) for name in OUTPUT_FLAGS})
    for name in ("weights", "img_size", "classes"):
        flags[name] = None if flags[name] is None else tuple(flags[name])
    run_predict(PredictOptions(**flags, output=output))


if __name__ == "__main__":
    run_command(main)
