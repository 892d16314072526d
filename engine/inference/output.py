"""What detection leaves behind: pictures, videos, label files, a table, crops; and the window on a display."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from data.sources.files import VIDEO_SUFFIXES, is_stream_address
from data.sources.frames import Frame
from utils.boxes import clip_boxes, cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import UserError
from utils.files import write_image
from utils.logging import LOGGER
from utils.output_names import OutputNames, file_name, folded
from utils.paths import replacing
from utils.plots import draw_boxes
from utils.text import printable, shown_path

WRITABLE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CSV_COLUMNS = ("image", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")
RESERVED_NAMES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
CROP_GAIN, CROP_MARGIN = 1.02, 10  # a crop is larger than its box by 2 % and by 10 pixels


@dataclass(frozen=True)
class OutputOptions:
    """What is written.

    Attributes:
        save_images: pictures and videos with boxes drawn.
        save_txt: a label file for each image or frame with detections, labels/<stem>.txt or labels/<stem>_<frame>.txt:
            rows `class cx cy w h`, normalised, the least confident first. Here as below, files with equal stems are
            told apart by more of their paths, see `utils.output_names`.
        save_conf: a confidence at the end of each row.
        save_csv: all detections in predictions.csv, in pixels.
        save_crop: each box's part of the image, crops/<class name>/<stem>.jpg, then <stem>_2.jpg and so on; a number
            that would give the name of another file is left out.
        line_thickness: of the boxes, in pixels; None follows the size of the image.
        hide_labels: draw boxes without captions.
        hide_conf: draw captions without confidences.
    """

    save_images: bool = True
    save_txt: bool = False
    save_conf: bool = False
    save_csv: bool = False
    save_crop: bool = False
    line_thickness: int | None = None
    hide_labels: bool = False
    hide_conf: bool = False

    @property
    def writes_anything(self) -> bool:
        """Whether a run folder is needed."""
        return self.save_images or self.save_txt or self.save_csv or self.save_crop


class ResultWriter:
    """Writes the detections of one frame after the other.

    Args:
        folder: the run folder, made when the first frame comes; None writes nothing.
        options: what is written.
        names: class names.
        paths: all files, cameras and addresses that frames come from.
    """

    def __init__(
        self, folder: Path | None, options: OutputOptions, names: Sequence[str], paths: Iterable[str] = ()
    ) -> None:
        self.folder = folder
        self.options = options
        self.names = names
        self._class_folders = class_folders(names)
        self._stems = OutputNames(paths, _has_frames)
        self._videos: dict[str, Any] = {}
        self._crops: Counter[tuple[int, str]] = Counter()  # class and file -> number of the latest crop
        self._table: IO[str] | None = None

    def write(self, frame: Frame, detections: np.ndarray, draw: bool = False) -> np.ndarray | None:
        """Writes all that is asked for about one frame.

        Args:
            frame: where the detections were made.
            detections: (n, 6) rows [x1, y1, x2, y2, confidence, class] in pixels, most confident first.
            draw: give the drawn picture back even when it is not saved.

        Returns:
            The picture with boxes, if it was drawn.

        Raises:
            UserError: a file cannot be written.
        """
        drawn = self._drawn(frame.image, detections) if draw or self.options.save_images else None
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._write_files(self.folder, frame, detections, drawn)
            except OSError as error:
                where = error.filename or self.folder
                raise UserError(
                    f"cannot write {where}: {error.strerror}; free some space or change --project"
                ) from error
        return drawn

    def close(self) -> None:
        """Completes the videos and the table."""
        self._release_videos()
        if self._table:
            self._table.close()

    def _write_files(self, folder: Path, frame: Frame, detections: np.ndarray, drawn: np.ndarray | None) -> None:
        stem = self._stems[frame.path]
        if self.options.save_txt and len(detections):
            suffix = "" if frame.kind == "image" else f"_{frame.index + 1}"
            (folder / "labels").mkdir(exist_ok=True)
            lines = label_lines(detections, frame.image.shape[:2], self.options.save_conf)
            with replacing(folder / "labels" / file_name(f"{stem}{suffix}", ".txt")) as stream:
                stream.writelines(f"{line}\n" for line in lines)
        if self.options.save_csv:
            self._write_rows(folder / "predictions.csv", frame, detections)
        if self.options.save_crop:
            self._write_crops(folder / "crops", stem, frame.image, detections)
        if self.options.save_images and drawn is not None:
            if frame.kind == "image":
                suffix = Path(frame.path).suffix.lower()
                write_image(folder / file_name(stem, suffix if suffix in WRITABLE_SUFFIXES else ".jpg"), drawn)
            else:
                self._write_video(folder / file_name(_encodable(stem), ".mp4"), frame, drawn)

    def _drawn(self, image: np.ndarray, detections: np.ndarray) -> np.ndarray:
        captions = []
        for *_, confidence, index in detections:
            name = self.names[int(index)]
            caption = name if self.options.hide_conf else f"{name} {confidence:.2f}"
            captions.append("" if self.options.hide_labels else caption)
        classes = detections[:, 5].astype(int)
        return draw_boxes(image, detections[:, :4], captions, classes, self.options.line_thickness)

    def _write_rows(self, path: Path, frame: Frame, detections: np.ndarray) -> None:
        if self._table is None:
            # Names of files may be no text; their bytes are written as they are.
            self._table = open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            csv.writer(self._table).writerow(CSV_COLUMNS)
        rows = csv.writer(self._table)
        for x1, y1, x2, y2, confidence, index in detections.tolist():
            box = [f"{value:g}" for value in (x1, y1, x2, y2)]
            rows.writerow([frame.path, frame.index, int(index), self.names[int(index)], f"{confidence:.4f}", *box])

    def _write_crops(self, folder: Path, stem: str, image: np.ndarray, detections: np.ndarray) -> None:
        boxes = xyxy_to_cxcywh(detections[:, :4])
        boxes[:, 2:] = boxes[:, 2:] * CROP_GAIN + CROP_MARGIN
        corners = clip_boxes(cxcywh_to_xyxy(boxes), image.shape[:2]).astype(int)
        for (x1, y1, x2, y2), index in zip(corners.tolist(), detections[:, 5].astype(int)):
            class_folder = folder / self._class_folders[index]
            class_folder.mkdir(parents=True, exist_ok=True)
            if x2 > x1 and y2 > y1:
                write_image(class_folder / file_name(self._crop_name(index, stem), ".jpg"), image[y1:y2, x1:x2])

    def _crop_name(self, index: int, stem: str) -> str:
        """The next name for a crop of a class from a file: no other file's, and no crop's of another."""
        self._crops[index, stem] += 1
        if self._crops[index, stem] == 1:
            return stem
        while self._stems.is_taken(f"{stem}_{self._crops[index, stem]}"):
            self._crops[index, stem] += 1
        return f"{stem}_{self._crops[index, stem]}"

    def _write_video(self, path: Path, frame: Frame, drawn: np.ndarray) -> None:
        if frame.path not in self._videos:
            if frame.kind == "video":  # files come one after the other
                self._release_videos()
            height, width = drawn.shape[:2]
            if not str(path).isprintable():  # OpenCV takes names in UTF-8 only
                raise UserError(f"cannot write the video {shown_path(path)}: its name is no plain text; use --nosave")
            video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frame.fps, (width, height))
            if not video.isOpened():
                raise UserError(f"cannot write the video {str(path)!r}; check the disk, or use --nosave")
            self._videos[frame.path] = video
        self._videos[frame.path].write(drawn)

    def _release_videos(self) -> None:
        for video in self._videos.values():
            video.release()
        self._videos = {}


def label_lines(detections: np.ndarray, hw: tuple[int, int], with_confidence: bool = False) -> list[str]:
    """Rows of a label file, least confident first: class, centre x, y, width, height in shares of the image.

    Args:
        detections: (n, 6) rows [x1, y1, x2, y2, confidence, class] in pixels, most confident first.
        hw: height and width of the image.
        with_confidence: append it to each row.
    """
    height, width = hw
    boxes = xyxy_to_cxcywh(detections[:, :4]) / np.array([width, height, width, height], dtype=np.float32)  # (n, 4)
    columns = [detections[:, 5:6], boxes, *([detections[:, 4:5]] if with_confidence else [])]
    rows = np.concatenate(columns, axis=1)[::-1]
    return [" ".join(f"{value:g}" for value in row) for row in rows.tolist()]


def class_folders(names: Sequence[str]) -> list[str]:
    """The folder of the crops of each class: its name where that is one for a folder, and never another class's."""
    wanted = []
    for index, name in enumerate(names):
        plain = re.sub(r"[^\w .-]+", "_", name)
        empty, reserved = not plain.strip(" ."), plain.partition(".")[0].strip().casefold() in RESERVED_NAMES
        wanted.append(f"class_{index}" if empty else f"{plain}_" if reserved else file_name(plain, ""))
    unchanged = {folded(name) for name, own in zip(wanted, names) if name == own}
    folders: list[str] = []
    used: set[str] = set()
    for index, (folder, name) in enumerate(zip(wanted, names)):
        if folded(folder) in used or (folder != name and folded(folder) in unchanged):
            folder = file_name(folder, f"_{index}")
            while folded(folder) in used | unchanged:
                folder += "_"
        used.add(folded(folder))
        folders.append(folder)
    return folders


def _has_frames(path: str) -> bool:
    """Whether label files of a source are numbered: those of a video, a camera or a stream."""
    return is_stream_address(path) or Path(path).suffix.lower() in VIDEO_SUFFIXES


def _encodable(name: str) -> str:
    """A name that OpenCV can take: one whose bytes are no text has a digest of them instead."""
    text = name.encode("utf-8", "replace").decode()
    return name if text == name else f"{text.replace('?', '_')}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


class Display:
    """A window for each source."""

    @classmethod
    def open(cls) -> Display | None:
        """A display, or None with a warning where there is none."""
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            LOGGER.warning("--view-img: there is no display here; look at the saved pictures instead")
            return None
        try:
            cv2.namedWindow("detect")
            cv2.destroyWindow("detect")
        except cv2.error:
            LOGGER.warning("--view-img: this OpenCV cannot open windows; install opencv-python instead of -headless")
            return None
        return cls()

    def show(self, frame: Frame, drawn: np.ndarray) -> bool:
        """Shows a picture; False when the user pressed q."""
        cv2.imshow(printable(frame.path), drawn)
        return cv2.waitKey(1) & 0xFF != ord("q")

    def close(self) -> None:
        """Closes the windows."""
        cv2.destroyAllWindows()
