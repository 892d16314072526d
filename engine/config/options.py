"""The options of a training, as the flags of train.py and train_distill.py set them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

INITS = ("auto", "inherit", "scratch")
"""What a student starts as: a part of its teacher where the pair allows it, in any case, or in no case."""
IMPORTANCES = ("taylor", "l1", "l2", "bn", "random")
LATER = {"init": "scratch", "inherit": "", "inherit_importance": "taylor"}
"""Options that files of earlier versions lack, with the values that do what those versions did."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of train.py and train_distill.py; names are those of the flags."""

    weights: str = ""
    cfg: str = ""
    data: str = "data/coco.yaml"
    hyp: str = ""
    epochs: int = 300
    batch_size: int = 16
    img_size: tuple[int, int] = (640, 640)
    rect: bool = False
    nosave: bool = False
    notest: bool = False
    val_period: int = 1
    noautoanchor: bool = False
    noplots: bool = False
    cache: str | None = None
    image_weights: bool = False
    device: str = ""
    multi_scale: bool = False
    single_cls: bool = False
    optimizer: str = "SGD"
    sync_bn: bool = False
    workers: int = 8
    project: str = "runs/train"
    name: str = "exp"
    exist_ok: bool = False
    linear_lr: bool = False
    label_smoothing: float = 0.0
    freeze: tuple[int, ...] = (0,)
    patience: int = 100
    save_period: int = -1
    seed: int = 0
    close_mosaic: int = 0
    compile: bool = False
    # what a student starts as
    init: str = "auto"
    inherit: str = ""
    inherit_importance: str = "taylor"
    # distillation
    teacher_weights: str = ""
    more_teachers: tuple[str, ...] = ()
    teacher_img_size: int = 0
    teacher_device: str = ""
    unlabeled: str = ""
    unlabeled_batch: int = 0
    # sparsity, before pruning
    sparsity: float = 0.0
    sparsity_schedule: str = "decay"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and values, as written to opt.yaml and into checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
