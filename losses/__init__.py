"""What a detector is trained with: losses, assignment of boxes to cells, overlap measures."""

from losses.anchor_based import scale_gains
from losses.yolov5 import YOLOv5Loss

LOSSES = {
    "yolov5": YOLOv5Loss,
}

__all__ = ["LOSSES", "YOLOv5Loss", "scale_gains"]
