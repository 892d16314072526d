"""Writes a model as a file of the upstream repositories, for their own test, detect, export and training scripts.

Such a file is a pickle of whole modules. It is put together from stand-ins, names and attributes alone, so none of
upstream's code is needed to write one. What each family's file holds: docs/checkpoints.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoints.checkpoint import write_archive
from checkpoints.pickled.rebuild import StandIn
from checkpoints.upstream.modules import (
    YOLOV5_7_CLASSES,
    YOLOV5_CLASSES,
    YOLOV7_CLASSES,
    YOLOV8_CLASSES,
    ModuleWriter,
    Style,
)
from checkpoints.upstream.pickle import StandInPickle
from models.yolo import Model
from utils.errors import UserError, unknown_name

# The hyper-parameters that upstream's model carries; what else a hyp file of ours says stays here.
SHARED_HYP = (
    "lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "box", "cls",
    "label_smoothing", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud",
    "fliplr", "mosaic", "mixup", "copy_paste",
)  # fmt: skip
ANCHOR_HYP = (*SHARED_HYP, "cls_pw", "obj", "obj_pw", "iou_t", "anchor_t", "fl_gamma")
OWN_YAML_KEYS = ("family", "names")  # keys of the architecture that upstream's yaml files do not have


@dataclass(frozen=True)
class Release:
    """What the files of one upstream release have in common.

    Attributes:
        style: of its modules.
        model_class: of the pickled model.
        hyp_keys: hyper-parameters that it knows.
        model: attributes of the pickled model that not every family has, from the model and its hyper-parameters.
        entries: entries of the file that not every family has, from the same.
        names_by_index: class names as {index: name} instead of a list.
        counts_parameters: each layer notes its number of parameters.
    """

    style: Style
    model_class: str
    hyp_keys: tuple[str, ...]
    model: Callable[[Model, dict[str, Any]], dict[str, Any]]
    entries: Callable[[Model, dict[str, Any]], dict[str, Any]]
    names_by_index: bool = False
    counts_parameters: bool = True


def save_upstream(
    model: Model,
    path: str | Path,
    *,
    hyp: Mapping[str, Any] | None = None,
    epoch: int = -1,
    release: str | None = None,
    half: bool = True,
) -> Path:
    """Writes a model as the training scripts of its family leave one at the end of a run.

    The model itself is left as it is, and written in the form that it has: RepConv keeps its branches and a head its
    implicit layers and auxiliary maps, so that it can be trained on.

    Args:
        model: of family yolov5, yolov7 or yolov8, before `fuse()`; its layers may be narrower than its yaml says.
        path: the file; its folder must exist.
        hyp: hyper-parameters; those that upstream knows are kept.
        epoch: the last epoch trained, from 0; -1 for a finished run, from which upstream starts a new one.
        release: of upstream, a key of `RELEASES[family]`; the first there by default.
        half: store weights in half precision, as upstream does.

    Returns:
        `path`.

    Raises:
        UserError: the family, the release or a block cannot be expressed, or the file cannot be written.
    """
    path = Path(path)
    form = find_release(model.family, release)
    known = {key: value for key, value in (hyp or {}).items() if key in form.hyp_keys}
    content = {
        "epoch": epoch,
        "best_fitness": None,
        "model": _model_stand_in(model, form, known, half),
        "ema": None,
        "updates": None,
        "optimizer": None,
        **form.entries(model, known),
    }
    write_archive(path, content, StandInPickle)
    return path


def find_release(family: str, name: str | None) -> Release:
    """A release of a family by its name, the newest for None.

    Raises:
        UserError: files of the family cannot be written, or the family has no such release.
    """
    if family not in RELEASES:
        raise UserError(
            f"a model of family {family!r} cannot be written as an upstream file, only those of {', '.join(RELEASES)}; "
            "keep it in our own format, or export it as onnx"
        )
    releases = RELEASES[family]
    name = next(iter(releases)) if name is None else name
    if name not in releases:
        raise unknown_name("release", name, list(releases), f"upstream files of {family}")
    return releases[name]


def _model_stand_in(model: Model, form: Release, hyp: dict[str, Any], half: bool) -> StandIn:
    dtype = torch.float16 if half else torch.float32
    writer = ModuleWriter(form.style, dtype, model.stride, form.counts_parameters)
    layers = {str(index): writer.layer(layer) for index, layer in enumerate(model.model)}
    sequence = writer.module(nn.Sequential(), "the model")
    sequence.attributes["_modules"] = layers
    yaml = copy.deepcopy({key: value for key, value in model.yaml.items() if key not in OWN_YAML_KEYS})
    return StandIn(
        form.model_class,
        attributes={
            **vars(nn.Module()),
            "training": False,
            "_modules": {"model": sequence},
            "yaml": yaml,
            "save": list(model.save),
            "names": dict(enumerate(model.names)) if form.names_by_index else list(model.names),
            "stride": model.stride,
            "nc": model.nc,
            **form.model(model, hyp),
        },
    )


# -- YOLOv5 and YOLOv7 -------------------------------------------------------------------------------------------------


def _yaml_name(model: Model) -> str:
    return Path(str(model.yaml.get("yaml_file") or f"{model.family}.yaml")).name


def _trained_attributes(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    """What the training scripts hang on a model; equal class weights, which count in a training alone."""
    return {"yaml_file": _yaml_name(model), "hyp": hyp, "class_weights": torch.ones(model.nc)}


def _yolov5_model(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {**_trained_attributes(model, hyp), "inplace": True}


def _yolov7_model(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {**_trained_attributes(model, hyp), "traced": False, "gr": 1.0}


def _yolov5_6_entries(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {"wandb_id": None, "date": _now()}


def _yolov5_7_entries(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {"opt": {"hyp": hyp}, "git": dict.fromkeys(("remote", "branch", "commit")), "date": _now()}


def _yolov7_entries(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {"training_results": None, "wandb_id": None}


def _now() -> str:
    return datetime.now().isoformat()


# -- YOLOv8 ------------------------------------------------------------------------------------------------------------


def _yolov8_arguments(hyp: dict[str, Any]) -> dict[str, Any]:
    """Settings of the training; the package completes them with its defaults."""
    return {"task": "detect", "mode": "train", **hyp}


def _yolov8_model(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {"inplace": True, "end2end": False, "args": _yolov8_arguments(hyp)}


def _yolov8_entries(model: Model, hyp: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_args": _yolov8_arguments(hyp),
        "train_metrics": {},
        "train_results": {},
        "date": _now(),
        "version": "8.2.103",
        "license": None,
        "docs": None,
    }


# -- the releases ------------------------------------------------------------------------------------------------------


def _yolov5(style: Style, **changes: Any) -> Release:
    """A release of YOLOv5 6.2 or later, apart from the changes."""
    given: dict[str, Any] = {
        "model_class": "models.yolo.DetectionModel",
        "hyp_keys": ANCHOR_HYP,
        "model": _yolov5_model,
        "entries": _yolov5_6_entries,
        "names_by_index": True,
    }
    return Release(style, **{**given, **changes})


_BEFORE_6_2: dict[str, Any] = {"model_class": "models.yolo.Model", "names_by_index": False}
# The releases of each family, the one that is written unless another is asked for first.
RELEASES: dict[str, dict[str, Release]] = {
    "yolov5": {
        "7.0": _yolov5(Style("YOLOv5 7.0", YOLOV5_7_CLASSES, shares_activation=True), entries=_yolov5_7_entries),
        "6.2": _yolov5(Style("YOLOv5 6.2", YOLOV5_CLASSES)),
        "6.1": _yolov5(Style("YOLOv5 6.1", YOLOV5_CLASSES, empty_grid=(1,)), **_BEFORE_6_2),
        "6.0": _yolov5(Style("YOLOv5 6.0", YOLOV5_CLASSES, empty_grid=(1,)), **_BEFORE_6_2),
    },
    "yolov7": {
        "0.1": Release(
            Style("YOLOv7", YOLOV7_CLASSES, in_place=False, casts_head=False, empty_grid=(1,)),
            "models.yolo.Model",
            (*ANCHOR_HYP, "paste_in", "loss_ota"),
            _yolov7_model,
            _yolov7_entries,
        ),
    },
    "yolov8": {
        "8.2": Release(
            Style("YOLOv8", YOLOV8_CLASSES, shares_activation=True),
            "ultralytics.nn.tasks.DetectionModel",
            (*SHARED_HYP, "dfl", "nbs", "close_mosaic"),
            _yolov8_model,
            _yolov8_entries,
            names_by_index=True,
            counts_parameters=False,
        ),
    },
}
