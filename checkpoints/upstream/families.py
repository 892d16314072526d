"""Which family a pickled detector belongs to, and what the others are called that cannot be used here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoints.pickled.rebuild import StandIn, printable
from utils.errors import UserError

DETECTION_MODELS = ("Model", "DetectionModel")
TASK_MODELS = {
    "SegmentationModel": "segmentation",
    "SemanticModel": "semantic segmentation",
    "ClassificationModel": "classification",
    "PoseModel": "poses",
    "OBBModel": "oriented boxes",
}
TASK_HEADS = {
    "Segment": "segmentation",
    "ISegment": "segmentation",
    "IRSegment": "segmentation",
    "SemanticSegment": "semantic segmentation",
    "Classify": "classification",
    "Pose": "poses",
    "OBB": "oriented boxes",
    "IKeypoint": "keypoints",
}
# For "give the detection checkpoint": what a file name of the task has that one for detection has not.
TASK_EXAMPLES = {"segmentation": "-seg", "classification": "-cls", "poses": "-pose", "oriented boxes": "-obb"}
OTHER_MODELS = {
    "RTDETRDetectionModel": "RT-DETR",
    "WorldModel": "YOLO-World",
    "YOLOEModel": "YOLOE",
    "YOLOESegModel": "YOLOE",
    "YOLOv10DetectionModel": "YOLOv10",
    "Darknet": "a Darknet model (YOLOv3, YOLOv4 or YOLOR)",
}
OTHER_HEADS = {
    "v10Detect": "YOLOv10",
    "RTDETRDecoder": "RT-DETR",
    "WorldDetect": "YOLO-World",
    "YOLOEDetect": "YOLOE",
    "DDetect": "YOLOv9",
    "DualDetect": "YOLOv9",
    "DualDDetect": "YOLOv9",
    "TripleDetect": "YOLOv9",
    "TripleDDetect": "YOLOv9",
    "IBin": "YOLOv7 with binned box sizes",
}
# A later family takes over blocks of an earlier one, so the first that is found in this order names it.
OTHER_BLOCKS = {
    "A2C2f": "YOLO12",
    "C3k2": "YOLO11 or later",
    "C2PSA": "YOLO11 or later",
    "SCDown": "YOLOv10",
    "C2fCIB": "YOLOv10",
    "RepNCSPELAN4": "YOLOv9",
    "ELAN1": "YOLOv9",
    "ADown": "YOLOv9",
    "AIFI": "RT-DETR",
    "HGBlock": "RT-DETR",
    "BottleneckCSP2": "YOLOv4",
    "SPPCSP": "YOLOv4",
    "VoVCSP": "YOLOv4",
}
YOLOV7_HEADS = ("IDetect", "IAuxDetect")
YOLOV7_BLOCKS = frozenset(
    {"MP", "SP", "ReOrg", "RepConv", "DownC", "SPPCSPC", "Shortcut", "Chuncat", "Foldcut", "ImplicitA", "ImplicitM"}
)


def refuse_other_models(model: StandIn, where: str) -> None:
    """Refuses what is no detector of YOLOv5, YOLOv7 or YOLOv8 by the class of the whole model."""
    name = model.short_name
    if name in TASK_MODELS:
        raise _another_task(TASK_MODELS[name], name, where)
    if name in OTHER_MODELS:
        raise _another_family(OTHER_MODELS[name], name, where)
    if name == "Ensemble":
        raise UserError(f"{where} holds several models in one; save each by itself and name them one after another")
    if name not in DETECTION_MODELS:
        raise _another_family(f"a pickled {model.class_name}", name, where)


def family_of(head: StandIn, head_has_layers: bool, classes: set[str], where: str) -> str:
    """The family, from the classes of the head and the blocks: YOLOv5 and YOLOv7 share their module paths.

    Args:
        head: the last layer.
        head_has_layers: whether it holds the prediction layers.
        classes: short class names of all modules.
        where: the file, for an error.

    Raises:
        UserError: another family's, or another task's; names it.
    """
    name = head.short_name
    if name in TASK_HEADS:
        raise _another_task(TASK_HEADS[name], name, where)
    if name in OTHER_HEADS:
        raise _another_family(OTHER_HEADS[name], name, where)
    for block, other in OTHER_BLOCKS.items():
        if block in classes:
            raise _another_family(other, block, where)
    if name in YOLOV7_HEADS:
        return "yolov7"
    if name != "Detect":
        raise UserError(
            f"{where}: its last layer is {head.class_name}, an unknown head; "
            "only detectors of YOLOv5, YOLOv7 and YOLOv8 are supported"
        )
    if "DFL" in classes:
        return "yolov8"
    if not head_has_layers:
        return "mobile"  # the prediction layers are ordinary layers before the head
    return "yolov7" if classes & YOLOV7_BLOCKS else "yolov5"


def _another_task(task: str, name: str, where: str) -> UserError:
    suffix = TASK_EXAMPLES.get(task)
    example = f", such as yolov8n.pt for yolov8n{suffix}.pt" if suffix else ""
    return UserError(
        f"{where} holds a model for {task} ({name}), not a detector; give the detection checkpoint{example}"
    )


def _another_family(other: str, name: str, where: str) -> UserError:
    return UserError(
        f"{where} holds {other} (found {name}); only YOLOv5, YOLOv7 and YOLOv8 detectors are supported, "
        "give a checkpoint of one of these"
    )


def guess_release(entries: Mapping[str, Any], model: StandIn, head: StandIn, family: str, classes: set[str]) -> str:
    """Which release wrote an upstream file, as far as its classes and entries tell.

    Args:
        entries: the file's top level.
        model: the whole model.
        head: its last layer.
        family: as `family_of` gives it.
        classes: full class names found in the file.
    """
    version = entries.get("version")
    if family == "yolov8":
        if isinstance(version, str) and version:
            return f"ultralytics {printable(version[:20])}"
        early = "ultralytics.nn.modules.Conv" in classes or any(name.startswith("ultralytics.yolo") for name in classes)
        return "ultralytics 8.0" + (", early" if early else "")
    if family == "yolov7":
        return "YOLOv7, training form" if head.short_name in YOLOV7_HEADS else "YOLOv7, deployment form"
    if family == "mobile":
        return "the mobile fork of YOLOv5"
    if "opt" in entries or "git" in entries:
        return "YOLOv5 7.0"
    if model.short_name == "DetectionModel":
        return "YOLOv5 6.2 or 7.0"
    if any(name.endswith(".Focus") for name in classes):
        return "YOLOv5 5.0 or earlier"
    return "YOLOv5 6.0 or 6.1"
