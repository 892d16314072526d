"""Which names the pickle of a YOLO checkpoint may hold, and whose the others are."""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_NAME = 200
# Classes below these modules become stand-ins: YOLOv5, YOLOv7 and the mobile fork, also as installed packages,
# ultralytics under its present and its early (8.0) module names, and PyTorch's own layers and optimizers.
_MODULES = re.compile(
    r"(yolov[57]\.)?(models|utils)(\.\w+)*|ultralytics(\.\w+)*"
    r"|torch\.(nn\.(modules|parallel|functional)|optim|cuda\.amp|amp)(\.\w+)*|torch\._C\._nn"
)
_CLASSES = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "datetime.date",
        "datetime.timedelta",
        "torch.nn.parameter.Parameter",
        "torch.utils.hooks.RemovableHandle",
    }
)
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "xrange": "range"}
# Packages whose detectors are something else, and what to call them.
OTHER_SOFTWARE = {
    "super_gradients": "YOLO-NAS",
    "yolov6": "YOLOv6",
    "yolox": "YOLOX",
    "nanodet": "NanoDet",
    "damo": "DAMO-YOLO",
    "mmdet": "MMDetection",
    "mmyolo": "MMYOLO",
    "mmengine": "MMDetection",
    "mmcv": "MMDetection",
    "detectron2": "Detectron2",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "Hugging Face",
    "rfdetr": "RF-DETR",
    "effdet": "EfficientDet",
    "fastai": "fastai",
    "pytorch_lightning": "PyTorch Lightning",
    "lightning": "PyTorch Lightning",
}


def canonical(module: str, name: str) -> tuple[str, str]:
    """A global by the names that the tables know: Python 2's and numpy 2's modules become the common ones."""
    module = _RENAMED.get(module, module).replace("numpy._core", "numpy.core")
    return module, _RENAMED.get(name, name) if module == "builtins" else name


def is_stand_in(module: str, name: str) -> bool:
    """Whether a global is one of the classes that become stand-ins."""
    known = f"{module}.{name}" in _CLASSES or (_MODULES.fullmatch(module) is not None and name.isidentifier())
    return known and len(module) + len(name) < MAX_NAME


def other_software(paths: Collection[str]) -> str | None:
    """Whose checkpoint it is that holds these names, where all of them belong to known software."""
    owners = [OTHER_SOFTWARE.get(path.partition(".")[0]) for path in paths]
    return next(iter(owners), None) if all(owners) else None
