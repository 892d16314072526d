"""Labels and the boxes of all models side by side, a file an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.config import load_dataset_config
from data.decoding.decode import ImageError, decode_image
from data.labels import build_index
from data.synthetic import ensure_dataset
from engine.comparing.evaluation import load_run
from engine.comparing.experiment import Experiment
from engine.comparing.summary import Run
from engine.inference.predict import Predictor
from engine.reporting.measuring import labelled_boxes
from utils.device import select_device
from utils.logging import LOGGER
from utils.output_names import OutputNames, file_name
from utils.plots import draw_boxes
from utils.text import shown_path

PICTURE_HEIGHT = 320


def draw_pictures(experiment: Experiment, runs: Sequence[Run], folder: Path) -> Path:
    """Draws labels and every role's boxes (first seed) side by side on images spread over the split.

    Returns:
        The folder of the pictures.
    """
    out = folder / "pictures"
    out.mkdir(exist_ok=True)
    config = ensure_dataset(load_dataset_config(experiment.data, needs=(experiment.split,)))
    records = build_index(getattr(config, experiment.split), config.nc, prefix=experiment.split).records
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.role, run)
    device = select_device(experiment.device)
    predictors = {
        role: Predictor(load_run(run, config, device), experiment.img_size, device, conf_thres=0.3)
        for role, run in first.items()
    }
    step = max(len(records) // experiment.pictures, 1)
    chosen = records[::step][: experiment.pictures]
    stems = OutputNames(record.path for record in chosen)
    for record in chosen:
        try:
            image = decode_image(record.path)
        except ImageError as error:  # since it was checked
            LOGGER.warning(f"no picture of {shown_path(record.path)}: {error}")
            continue
        panels = [_panel(image, labelled_boxes(record), "labels", config.names)]
        panels += [
            _panel(image, predictor(image).cpu().numpy(), role, config.names) for role, predictor in predictors.items()
        ]
        (out / file_name(stems[record.path], ".jpg")).write_bytes(cv2.imencode(".jpg", np.hstack(panels))[1].tobytes())
    return out


def _panel(image: np.ndarray, detections: np.ndarray, title: str, names: Sequence[str]) -> np.ndarray:
    scale = PICTURE_HEIGHT / image.shape[0]
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    texts = [names[int(row[5])] + ("" if row[4] >= 1 else f" {row[4]:.2f}") for row in detections]
    canvas = draw_boxes(canvas, detections[:, :4] * scale, texts, classes=detections[:, 5].astype(int))
    header = np.full((24, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(header, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.vstack([header, canvas]), ((0, 0), (0, 4), (0, 0)), constant_values=255)
