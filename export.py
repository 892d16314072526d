"""Writes a checkpoint for other runtimes: `python export.py --weights best.pt --include onnx torchscript openvino`."""

from __future__ import annotations

import argparse

from utils.running.cli import CommandParser, run_command


def build_parser() -> argparse.ArgumentParser:
    """Upstream YOLOv7's flags and defaults, with YOLOv5's spellings as aliases."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = CommandParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--weights", default="yolov7.pt", help="checkpoint, ours or upstream's; the files are written beside it")
    formats = "torchscript, onnx, openvino, upstream (a .pt for the upstream repository)"
    add("--include", nargs="+", default=["onnx"], help=f"formats to write: {formats}")
    add(
        "--img-size",
        "--imgsz",
        "--img",
        nargs="+",
        type=int,
        default=[640],
        help="side, or height and width",
    )
    add("--batch-size", "--batch", type=int, default=1, help="images a call")
    add("--dynamic", action="store_true", help="any number of images of any size (ONNX, OpenVINO)")
    add("--dynamic-batch", action="store_true", help="any number of images of one size; goes before --dynamic")
    add("--grid", action="store_true", help="accepted for upstream's sake; boxes are always decoded to pixels")
    add("--end2end", "--nms", "--include-nms", action="store_true", help="suppression inside (ONNX, OpenVINO)")
    add("--max-wh", type=int, default=None, help="pixels by which it moves classes apart; measured without it")
    add("--topk-all", type=int, default=100, help="boxes an image that it keeps")
    add("--iou-thres", type=float, default=0.45, help="overlap above which it drops the weaker box")
    add("--conf-thres", type=float, default=0.25, help="confidence that it asks for")
    add("--agnostic-nms", action="store_true", help="let boxes of different classes suppress one another")
    add("--simplify", action=argparse.BooleanOptionalAction, default=True, help="simplify the ONNX graph")
    add("--half", "--fp16", action="store_true", help="float16")
    add("--opset", type=int, default=17, help="version of ONNX's operators")
    add("--release", help="of an upstream file: 7.0, 6.2, 6.1 or 6.0 of YOLOv5 (the newest without it)")
    add("--device", default="cpu", help="where to trace: cpu, 0, or cuda:0; a TorchScript file stays there")
    return parser


def main() -> None:
    """Parses the flags and exports."""
    flags = vars(build_parser().parse_args())
    from engine.exporting.export import ExportOptions, run_export
    from utils.logging import setup_logging

    setup_logging()
    del flags["grid"]
    run_export(ExportOptions(**flags | {name: tuple(flags[name]) for name in ("include", "img_size")}))


if __name__ == "__main__":
    run_command(main)
