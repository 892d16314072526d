"""How strong each distillation loss is at weight 1, beside the detection loss, where a share is measured and elsewhere.

    python -m benchmarks.gradient_ratios

For each loss and family: the ratio of the norms of gradients, the loss's to the detection loss's, at the student's
feature maps (what a `share` in a recipe means) and over its parameters (what the first batch of a training shows).
Teacher and student train briefly on the built-in set first, and the adapters for some steps more; then several batches
are measured, and the geometric mean over them is printed. A weight w gives a share of w times the ratio at features.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmarks.distill_step import VARIANTS
from data.config import load_dataset_config
from data.labels import build_index
from data.loader import Batch
from data.synthetic import ensure_dataset
from distill import LOSSES, Distiller, DistillError
from engine.config.defaults import kind_of_architecture, resolve_hyp
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.distillers import head_spec
from engine.training.criterion import build_criteria
from engine.training.data import sample_batches
from models.yolo import Model
from utils.device import images_to_device
from utils.running.cli import run_command

ROOT = Path(__file__).resolve().parents[1]
RECIPE = {"box": 1.0, "obj": 0.1, "cls": 0.15}
FORMS = {name: (name, {}) for name in LOSSES} | VARIANTS | {"output, gains of its recipe": ("output", RECIPE)}
FORMS |= {f"its {part} alone": ("output", {**dict.fromkeys(RECIPE, 0.0), part: RECIPE[part]}) for part in RECIPE}
FAMILIES = {
    "YOLOv5": ("yolov5/yolov5p", 1.0, "yolov5/yolov5n", 1.0),
    "YOLOv7": ("yolov7/yolov7-tiny", 0.25, "yolov7/yolov7-tiny", 0.5),
    "YOLOv8": ("yolov8/yolov8n", 0.5, "yolov8/yolov8n", 1.0),
}
"""Student and teacher, each with the share of its width."""


def network(cfg: str, share: float, nc: int) -> Model:
    """An architecture of this share of its width."""
    config = yaml.safe_load((ROOT / f"cfg/{cfg}.yaml").read_text())
    if "scales" in config:
        config["scales"] = {
            key: [depth, width * share, *rest] for key, (depth, width, *rest) in config["scales"].items()
        }
    else:
        config["width_multiple"] *= share
    torch.manual_seed(0)
    return Model(config, nc=nc).train()


class Trained:
    """A network and its detection loss on some batches, on the CPU."""

    def __init__(self, model: Model, hyp: Hyp, size: int, batches: Sequence[Batch]) -> None:
        self.model = model
        self.criterion, _ = build_criteria(model, hyp, size, 0.0, torch.device("cpu"))
        self.batches: Iterator[Batch] = itertools.cycle(batches)

    def step(self, kd: Distiller | None = None) -> tuple[Tensor, Tensor | None]:
        """Detection loss and, with a distiller, its loss of the next batch."""
        batch = next(self.batches)
        images = images_to_device(batch.images, torch.device("cpu"))
        layers = kd.layers if kd else []
        predictions, features = self.model(images, extra_features=layers) if layers else (self.model(images), [])
        detection, _ = self.criterion(predictions, batch.targets)
        if kd is None:
            return detection, None
        return detection, kd(images, predictions, features, batch.targets, detection_loss=detection)[0]

    def train(self, steps: int) -> None:
        """Brief, plain, with AdamW."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            self.step()[0].backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
            optimizer.step()


def ratio(loss: Tensor, detection: Tensor, points: Sequence[Tensor]) -> float:
    """Of the norms of gradients at some tensors."""
    norms = []
    for value in (loss, detection):
        found = torch.autograd.grad(value, list(points), retain_graph=True, allow_unused=True)
        norms.append(torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm())
    return float(norms[0] / norms[1])


def measure(trained: Trained, kd: Distiller, adapter_steps: int, count: int) -> tuple[float, float]:
    """Geometric means over `count` batches of the ratios at weight 1: at features, over parameters."""
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    adapters = list(kd.parameters())
    optimizer = torch.optim.AdamW(adapters, lr=1e-3) if adapters else None
    for _ in range(adapter_steps if optimizer else 0):
        _, loss = trained.step(kd)
        assert optimizer is not None and loss is not None
        for parameter, gradient in zip(adapters, torch.autograd.grad(loss, adapters, allow_unused=True)):
            parameter.grad = gradient
        optimizer.step()
    assert kd.balance is not None
    kd.load_state_dict(
        {key: torch.zeros_like(x) if key.startswith("balance.") else x for key, x in kd.state_dict().items()}
    )
    over = []
    for _ in range(count):
        detection, loss = trained.step(kd)
        assert loss is not None
        over.append(math.log(ratio(loss, detection, parameters) / float(kd.balance.factors)))
    return 1 / float(kd.balance.factors), math.exp(sum(over) / count)  # of a share of 1


def rows(args: argparse.Namespace) -> Iterator[tuple[str, str, float, float]]:
    """Family, form, ratio at features, ratio over parameters."""
    config = ensure_dataset(load_dataset_config(args.data))
    index = build_index(config.train, config.nc, quiet=True)
    index.records[args.images :] = []
    for family in args.families or FAMILIES:
        student_cfg, student_share, teacher_cfg, teacher_share = FAMILIES[family]
        teacher = network(teacher_cfg, teacher_share, config.nc)
        hyp = resolve_hyp("", kind_of_architecture(teacher.yaml), distil=False).hyp
        options = TrainOptions(img_size=(args.img_size, args.img_size), batch_size=args.batch_size, workers=0)
        batches = sample_batches(index, options, hyp, 32, args.images // args.batch_size)
        Trained(teacher, hyp, args.img_size, batches).train(args.teacher_steps)
        student = network(student_cfg, student_share, config.nc)
        Trained(student, hyp, args.img_size, batches).train(args.student_steps)
        teacher.eval()
        for form in args.forms or FORMS:
            name, settings = FORMS[form]
            heads: dict[str, Any] = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
            losses = {name: {**settings, "share": 1.0}}
            try:
                kd = Distiller(student, teacher, "auto", "auto", losses, image_size=args.img_size, **heads)
                trained = Trained(student, hyp, args.img_size, batches)
                yield family, form, *measure(trained, kd, args.adapter_steps, args.batches)
            except DistillError as error:
                print(f"{family}, {form}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(ROOT / "data/synthetic.yaml"))
    parser.add_argument("--families", nargs="*", default=[], help="all by default")
    parser.add_argument("--forms", nargs="*", default=[], help="losses and further forms of them; all by default")
    parser.add_argument("--images", type=int, default=512, help="of the training split")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--teacher-steps", type=int, default=250)
    parser.add_argument("--student-steps", type=int, default=60)
    parser.add_argument("--adapter-steps", type=int, default=6)
    parser.add_argument("--batches", type=int, default=4, help="that are measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'family':9}{'method at weight 1':30}{'at features':>14}{'over parameters':>18}", flush=True)
    for family, form, at_features, over in rows(args):
        print(f"{family:9}{form:30}{at_features:>14.3g}{over:>18.3g}", flush=True)


if __name__ == "__main__":
    run_command(main)
