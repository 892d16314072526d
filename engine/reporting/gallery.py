"""Pictures of a report: what one model finds and another misses, and where networks look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch

from data.decoding.decode import ImageError, decode_image
from data.records import ImageRecord
from distill.pairing import head_inputs
from engine.reporting.matching import match
from engine.reporting.measuring import Measured, labelled_boxes
from engine.reporting.page import Picture, data_uri
from models.yolo import Model
from utils.letterbox import letterbox
from utils.text import printable

SIDE = 420
"""Longer side of a picture in pixels."""
HIT, WRONG, MISSED = (90, 190, 40), (30, 150, 245), (60, 50, 235)  # BGR: green, orange, red
FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.38)
MAX_NAME = 24


def count_missed(teacher: Measured, other: Measured) -> tuple[int, int]:
    """Labelled boxes that the teacher finds and another model misses, and the reverse."""
    ours, theirs = (
        np.concatenate([np.zeros(0, bool), *teacher.found]),
        np.concatenate([np.zeros(0, bool), *other.found]),
    )
    return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


def telling_images(teacher: Measured, baseline: Measured, number: int) -> list[int]:
    """Indices of the images with most boxes that the teacher finds and the baseline misses.

    No other model has a say, or the pictures would flatter it.
    """
    missed = np.array([int((a & ~b).sum()) for a, b in zip(teacher.found, baseline.found)])
    order = np.argsort(-missed, kind="stable")[:number]
    return [int(i) for i in order if missed[i]]


def picture_row(
    record: ImageRecord, place: int, measured: Mapping[str, Measured], names: Sequence[str]
) -> list[Picture]:
    """An image once a model: boxes that are right, wrong, and missed; nothing where it cannot be read.

    Args:
        record: of the image.
        place: its index in the split.
        measured: the models by their names.
        names: of the classes.
    """
    try:
        image = decode_image(record.path)
    except ImageError:  # since it was checked
        return []
    labels = labelled_boxes(record)
    row = []
    for name, each in measured.items():
        missed = int((~each.found[place]).sum())
        shown = _draw(image, each.detections[place], labels, each.found[place], names)
        told = f"{missed} of {len(labels)} boxes missed"
        row.append(Picture(data_uri(shown), f"{name}: {told}" if name else told))
    return row


def _draw(
    image: np.ndarray, detections: np.ndarray, labels: np.ndarray, found: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """The image at its size in the page, with the boxes in the colours of what they are."""
    canvas, scale = _fitted(image)
    hit = np.zeros(len(detections), bool)
    for index in np.unique(detections[:, 5]):
        mine = np.flatnonzero(detections[:, 5] == index)
        hit[mine] = match(detections[mine, :4], labels[labels[:, 5] == index, :4])[:, 0] >= 0
    kinds = ((labels[~found], MISSED), (detections[~hit], WRONG), (detections[hit], HIT))
    boxes = [(row, color) for rows, color in kinds for row in rows]
    for row, color in boxes:
        x1, y1, x2, y2 = (int(round(float(v) * scale)) for v in row[:4])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2, cv2.LINE_AA)
    for row, color in boxes:  # after all lines, which would cross them
        name = printable(names[int(row[5])], MAX_NAME)
        text = name if name.isascii() else str(int(row[5]))  # OpenCV's letters are ASCII's
        left, top = (int(round(float(v) * scale)) for v in row[:2])
        (width, height), _ = cv2.getTextSize(text, *FONT, 1)
        x, y = max(min(left, canvas.shape[1] - width - 4), 0), max(top - height - 5, 0)
        cv2.rectangle(canvas, (x, y), (x + width + 3, y + height + 4), color, cv2.FILLED)
        cv2.putText(canvas, text, (x + 2, y + height + 1), *FONT, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _fitted(image: np.ndarray) -> tuple[np.ndarray, float]:
    scale = SIDE / max(image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=way), scale


def attention_row(
    record: ImageRecord, models: Mapping[str, Model], img_size: int, device: torch.device
) -> list[Picture]:
    """An image once a model, with the model's attention over it; nothing where it cannot be read."""
    try:
        image = decode_image(record.path)
    except ImageError:
        return []
    row = []
    for name, model in models.items():
        heat = attention(model, image, img_size, device)
        canvas, _ = _fitted(image)
        heat = cv2.resize(heat, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        colored = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
        row.append(Picture(data_uri(cv2.addWeighted(canvas, 0.4, colored, 0.6, 0)), name))
    return row


@torch.inference_mode()
def attention(model: Model, image: np.ndarray, img_size: int, device: torch.device) -> np.ndarray:
    """Where a network is active: the mean over channels of its squared features at the inputs of its head.

    Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017 (equation 1 with p = 2), as FGD (Yang et al.,
    CVPR 2022) uses it in detectors. Each level is scaled to 0..1, and the levels are averaged.

    Args:
        model: in evaluation mode, on the device.
        image: uint8 (H, W, 3) BGR.
        img_size: longer side of the network input.
        device: of the model.

    Returns:
        float32 (H, W) in 0..1.
    """
    fitted, ratios, padding = letterbox(image, img_size, auto=True, stride=int(max(model.stride)))
    batch = torch.from_numpy(np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1)))[None].to(device).float() / 255
    layers = [layer for layer in head_inputs(model, "student")[0] if isinstance(layer, int)]
    _, features = model(batch, extra_features=layers, features_only=True)
    total = np.zeros(fitted.shape[:2], np.float32)
    for feature in features:
        level = feature[0].float().pow(2).mean(0).cpu().numpy()
        level = (level - level.min()) / max(float(level.max() - level.min()), 1e-12)
        total += cv2.resize(level, fitted.shape[1::-1], interpolation=cv2.INTER_LINEAR) / len(features)
    left, top = (round(side - 0.1) for side in padding)
    height, width = (round(side * ratio) for side, ratio in zip(image.shape[:2], ratios[::-1]))
    inner = total[top : top + height, left : left + width]
    return cv2.resize(inner, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
