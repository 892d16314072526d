"""Detection on images, videos, cameras and streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoints.exported import existing_weights
from data.config import load_class_names
from data.sources.files import open_source
from data.sources.frames import Source
from engine.inference.ensemble import load_detector, with_names
from engine.inference.output import Display, OutputOptions, ResultWriter
from utils.boxes import scale_boxes
from utils.detector import Detector, as_detector
from utils.device import Timer, images_to_device, select_device
from utils.errors import UsageError, UserError
from utils.letterbox import letterbox
from utils.logging import LOGGER, progress
from utils.names import MAX_NAME, distinct_names
from utils.nms import non_max_suppression
from utils.paths import run_path
from utils.running.cli import MOST_BOXES, check_pixels, check_range, check_share
from utils.running.folders import output_folder
from utils.sizes import rounded_size
from utils.text import printable

MOST_THICKNESS = 1000  # pixels of a line; OpenCV draws no thicker ones than 32767


@dataclass(frozen=True)
class PredictOptions:
    """What to detect with, on what, and what to write.

    Attributes:
        weights: checkpoints or exported files; several vote as an ensemble.
        source: see `data.sources.files.open_source`.
        img_size: longer side of the network input, or its height and width, in pixels.
        conf_thres: a detection's confidence must exceed it.
        iou_thres: a box that overlaps a better one of its class by more is dropped.
        max_det: detections an image at most.
        classes: keep these classes only.
        agnostic_nms: boxes of different classes suppress one another too.
        augment: test-time augmentation.
        half: float16 on a GPU.
        vid_stride: take every so-manieth frame of a video.
        data: yaml whose `names` replace the checkpoint's.
        device: see `utils.device.select_device`.
        view_img: show what is detected, where there is a display.
        trust: run exported files that are programs.
        project, name, exist_ok: the run folder.
        output: what is written into it.
    """

    weights: tuple[str, ...]
    source: str
    img_size: tuple[int, ...] = (640,)
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False
    augment: bool = False
    half: bool = False
    vid_stride: int = 1
    data: str = ""
    device: str = ""
    view_img: bool = False
    trust: bool = False
    project: str = "runs/detect"
    name: str = "exp"
    exist_ok: bool = False
    output: OutputOptions = OutputOptions()

    def __post_init__(self) -> None:
        """Refuses values out of their range with a UsageError."""
        check_share("--conf-thres", self.conf_thres)
        check_share("--iou-thres", self.iou_thres)
        if len(self.img_size) not in (1, 2):
            raise UsageError(f"--img-size takes a side or height and width; got {len(self.img_size)} numbers")
        for side in self.img_size:
            check_pixels("--img-size", side)
        check_range("--max-det", self.max_det, 1, MOST_BOXES)
        check_range("--vid-stride", self.vid_stride, 1, 10**9)
        if self.output.line_thickness is not None:
            check_range("--line-thickness", self.output.line_thickness, 1, MOST_THICKNESS)
        run_path(self.project, self.name)


@dataclass(frozen=True)
class PredictResult:
    """What a run found.

    Attributes:
        folder: the run folder; None when nothing is written.
        num_images: images and frames.
        counts: class name -> number of detections; names that stand twice have their index behind.
        speed: milliseconds an image of the steps preprocess, inference and nms.
        skipped: files that could not be read.
    """

    folder: Path | None
    num_images: int
    counts: dict[str, int]
    speed: dict[str, float]
    skipped: tuple[str, ...]


class Predictor:
    """A model with all that leads from an image to boxes in its pixels.

    Args:
        model: says of itself what `utils.detector.Detector` names.
        img_size: of the network input: the longer side, or (height, width); without effect on a model that takes one
            size alone.
        device: where to compute; by default where the model is.
        half: compute in float16; on a GPU only.
        augment: test-time augmentation.
        nms_options: keywords of `utils.nms.non_max_suppression`.

    Attributes:
        timers: seconds spent in the steps preprocess, inference and nms.
        num_images: images seen.
    """

    def __init__(
        self,
        model: Detector | nn.Module,
        img_size: int | tuple[int, int] = 640,
        device: torch.device | None = None,
        half: bool = False,
        augment: bool = False,
        **nms_options: Any,
    ) -> None:
        model = as_detector(model)
        device = device or next(model.parameters()).device
        if half and device.type == "cpu":
            LOGGER.warning("--half needs a GPU; computing in float32")
            half = False
        self.dtype = torch.float16 if half else torch.float32
        self.model = model.to(device, self.dtype).eval()
        self.device = device
        self.stride = int(max(model.stride))
        self.input_hw = model.input_hw
        self.img_size = self.input_hw or img_size
        self.augment = augment
        self.nms_options = {"layout": model.layout, **nms_options}
        self.timers = {step: Timer(device) for step in ("preprocess", "inference", "nms")}
        self.num_images = 0

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Detects on one image.

        Args:
            image: uint8 (H, W, 3) BGR.

        Returns:
            (n, 6) rows [x1, y1, x2, y2, confidence, class] in pixels of the image, most confident first; float32 on
            the CPU.
        """
        with self.timers["preprocess"]:
            fitted, _, _ = letterbox(image, self.img_size, auto=not self.input_hw, stride=self.stride)  # (h, w, 3)
            rgb = np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1))  # (3, h, w)
            batch = images_to_device(torch.from_numpy(rgb)[None], self.device, self.dtype)  # (1, 3, h, w)
        with self.timers["inference"]:
            decoded, _ = self.model(batch, augment=self.augment)
        with self.timers["nms"]:
            found = non_max_suppression(decoded, **self.nms_options)[0].cpu()  # (n, 6)
        found[:, :4] = scale_boxes(found[:, :4], fitted.shape[:2], image.shape[:2])
        self.num_images += 1
        return found

    def warm_up(self) -> None:
        """Lets a GPU prepare for the work, so that the first image's time says something."""
        if self.device.type != "cpu":
            side = self.img_size if isinstance(self.img_size, int) else max(self.img_size)
            self(np.zeros((side, side, 3), np.uint8))
            self.timers = {step: Timer(self.device) for step in self.timers}
            self.num_images = 0

    @property
    def speed(self) -> dict[str, float]:
        """Milliseconds an image of each step."""
        return {step: 1000 * timer.seconds / max(self.num_images, 1) for step, timer in self.timers.items()}


def run_predict(options: PredictOptions) -> PredictResult:
    """Detects on every frame of a source and writes what the options ask for.

    Raises:
        UserError: weights, source or data file are not usable; the line says what to mend.
    """
    for path in options.weights:
        existing_weights(path)
    source = open_source(options.source, options.vid_stride)
    try:
        device = select_device(options.device)
        given = _names_of(options.data)
        model = load_detector(options.weights, device, options.augment, given, options.trust)
        if given is not None:
            model = _renamed(model, given, options)
        names = list(model.names) if given is None else given
        predictor = _predictor(options, model, device)
        return _detect(options, source, predictor, names)
    finally:
        source.close()


def _predictor(options: PredictOptions, model: Detector, device: torch.device) -> Predictor:
    wrong = [index for index in options.classes or () if not 0 <= index < model.nc]
    if wrong:
        raise UsageError(f"--classes {wrong[0]}: the model has classes 0 to {model.nc - 1}")
    stride = int(max(model.stride))
    sizes = tuple(rounded_size(size, stride, "--img-size") for size in options.img_size)
    predictor = Predictor(
        model,
        sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1]),
        device,
        options.half,
        options.augment,
        conf_thres=options.conf_thres,
        iou_thres=options.iou_thres,
        classes=options.classes,
        agnostic=options.agnostic_nms,
        max_det=options.max_det,
    )
    predictor.warm_up()
    return predictor


def _names_of(data: str) -> list[str] | None:
    """The class names of a data set yaml, None without one."""
    if not data:
        return None
    return list(load_class_names(data))


def _renamed(model: Detector, given: list[str], options: PredictOptions) -> Detector:
    """The model with the names of a data set's yaml, and in their order."""
    if len(given) != model.nc:
        found = f"--data {options.data} has {len(given)} names, but the model has {model.nc} classes"
        raise UserError(f"{found}; name the data set of this model")
    return with_names(model, given, f"--data {options.data}", f"--weights {options.weights[0]}")


def _detect(options: PredictOptions, source: Source, predictor: Predictor, names: Sequence[str]) -> PredictResult:
    """Takes every frame from the source through the predictor to the files and the display."""
    with ExitStack() as stack:
        folder = None
        if options.output.writes_anything:
            folder = stack.enter_context(output_folder(run_path(options.project, options.name), options.exist_ok))
        result = _write_results(options, source, predictor, names, folder)
    LOGGER.info(summarize(result))
    return result


def _write_results(
    options: PredictOptions, source: Source, predictor: Predictor, names: Sequence[str], folder: Path | None
) -> PredictResult:
    writer = ResultWriter(folder, options.output, names, source.paths)
    display = Display.open() if options.view_img else None
    counts: Counter[str] = Counter()
    keys = distinct_names(names)
    try:
        with progress(source, total=source.total, desc="detecting") as frames:
            for frame in frames:
                found = predictor(frame.image).numpy()
                found[:, :4] = found[:, :4].round()  # upstream writes and draws whole pixels
                counts.update(keys[int(index)] for index in found[:, 5])
                drawn = writer.write(frame, found, draw=display is not None)
                if display and drawn is not None and not display.show(frame, drawn):
                    break
    finally:
        writer.close()
        if display:
            display.close()
    return PredictResult(folder, predictor.num_images, dict(counts), predictor.speed, tuple(source.skipped))


def summarize(result: PredictResult) -> str:
    """One line: how much was seen, what was found, how fast, and where it is."""
    ordered = sorted(result.counts.items(), key=lambda item: -item[1])
    found = ", ".join(f"{count} x {printable(name, MAX_NAME)}" for name, count in ordered)
    speed = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in result.speed.items())
    parts = [f"{result.num_images} images: {found or 'nothing found'}", f"ms an image: {speed}"]
    if result.skipped:
        parts.append(f"{len(result.skipped)} files skipped")
    if result.folder:
        parts.append(f"saved to {result.folder}")
    return "; ".join(parts)
