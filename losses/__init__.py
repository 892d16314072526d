"""What a detector is trained with: losses, assignment of boxes to cells, overlap measures."""

from losses.anchor_based import scale_gains
from losses.simota import SimOTALoss
from losses.simota_aux import SimOTAAuxLoss
from losses.yolov5 import YOLOv5Loss
from losses.yolov8 import YOLOv8Loss

LOSSES = {
    "yolov5": YOLOv5Loss,
    "simota": SimOTALoss,
    "simota_aux": SimOTAAuxLoss,
    "yolov8": YOLOv8Loss,
}

__all__ = ["LOSSES", "SimOTAAuxLoss", "SimOTALoss", "YOLOv5Loss", "YOLOv8Loss", "scale_gains"]
