"""What a detector is trained with: losses, assignment of boxes to cells, overlap measures.

Imports utils.
"""

from losses.anchor_based import scale_gains
from losses.simota import SimOTALoss
from losses.simota_aux import SimOTAAuxLoss
from losses.yolov5 import YOLOv5Loss
from losses.yolov8 import YOLOv8Loss

__all__ = ["SimOTAAuxLoss", "SimOTALoss", "YOLOv5Loss", "YOLOv8Loss", "scale_gains"]
