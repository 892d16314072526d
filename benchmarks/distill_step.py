"""Time of a distilled training step beside the student's own step and the teacher's bare forward pass.

    python -m benchmarks.distill_step --student cfg/yolov5/yolov5n.yaml --teacher cfg/yolov5/yolov5s.yaml

For each method: the parameters that are trained beside the student's, the time of a step (forward, detection loss,
distillation, backward), and its ratio to the sum of the student's step and the teacher's forward pass over the same
images, which no distillation can do without. Then what a `share` in place of a weight costs: the ratio of a step that
is measured to one that is not, and that of an epoch of so many steps, of which four are measured. All of them run in
turn and medians are taken; on a CPU the time is that of the processor, for one thread by default. So the ratios hold
whatever else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.losses import make_targets
from distill import LOSSES, Distiller, DistillError
from distill.strength.balance import AN_EPOCH
from engine.config.defaults import kind_of_architecture, resolve_hyp
from engine.distilling.distillers import head_spec
from engine.training.criterion import build_criteria
from models.yolo import Model
from utils.device import synchronize
from utils.running.cli import run_command

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "crosskd at 1": ("crosskd", {"at": 1}),
    "output, paper": ("output", {"box": 0, "scale_obj": False, "activated": True, "fm_nms": True}),
}
"""Further forms of a method, beside every method with its defaults."""


class Step:
    """One training step of a student, with a distiller or without."""

    def __init__(self, student: Model, criterion: nn.Module, images: Tensor, targets: Tensor) -> None:
        self.student, self.criterion, self.images, self.targets = student, criterion, images, targets

    def run(self, kd: Distiller | None) -> None:
        """Forward, losses, backward; gradients are dropped before it."""
        self.student.zero_grad(set_to_none=True)
        layers = kd.layers if kd else []
        if layers:
            predictions, features = self.student(self.images, extra_features=layers)
        else:
            predictions, features = self.student(self.images), []
        loss, _ = self.criterion(predictions, self.targets)
        if kd:
            kd.zero_grad(set_to_none=True)
            more, _ = kd(self.images, predictions, features, self.targets, detection_loss=loss)
            loss = loss + more
        loss.backward()


def build_distillers(
    student: Model, teacher: Model, names: list[str], image_size: int, shares: bool = False
) -> dict[str, Distiller]:
    """A distiller for each method that fits the two networks; with `shares`, by a share in place of a weight."""
    forms = {name: (name, {}) for name in LOSSES} | VARIANTS
    found = {}
    for form in names or forms:
        name, settings = forms[form]
        heads = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
        try:
            losses = {name: {**settings, "share": 0.5} if shares else settings}
            found[form] = Distiller(student, teacher, "auto", "auto", losses, image_size=image_size, **heads)  # type: ignore[arg-type]
        except DistillError as error:
            if not shares:
                print(f"{form}: {error}")
    return found


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of one call: the processor's time on a CPU, which other programs take less part in."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    function()
    synchronize(device)
    return 1e3 * (clock() - start)


def of_share(name: str) -> str:
    """What the measured step of a method is called."""
    return f"{name}, measured"


def measured(step: Step, kd: Distiller) -> None:
    """A step of a training's beginning, in which the share is measured."""
    kd.load_state_dict({key: torch.zeros_like(x) if "balance." in key else x for key, x in kd.state_dict().items()})
    step.run(kd)


def measure(
    step: Step, teacher: Model, distillers: dict[str, Distiller], shares: dict[str, Distiller], repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of "student", "teacher" and each method, `repeats` times in turn after one round to warm up."""
    device = step.images.device

    @torch.no_grad()
    def look() -> object:
        return teacher(step.images)

    runs: dict[str, Callable[[], object]] = {"student": lambda: step.run(None), "teacher": look}
    runs |= {name: lambda kd=kd: step.run(kd) for name, kd in distillers.items()}
    runs |= {of_share(name): lambda kd=kd: measured(step, kd) for name, kd in shares.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repeats + 1):
        for name, run in runs.items():
            spent = milliseconds(run, device)
            if round_number:
                times[name].append(spent)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="cfg/yolov5/yolov5n.yaml")
    parser.add_argument("--teacher", default="cfg/yolov5/yolov5s.yaml")
    parser.add_argument("--methods", nargs="*", default=[], help="names of losses; all by default")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--img-size", type=int, default=320)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=8, help="an image")
    parser.add_argument("--steps", type=int, default=100, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    student = Model(args.student, nc=args.classes).to(device).train()
    teacher = Model(args.teacher, nc=args.classes).to(device).eval().fuse()
    distillers = build_distillers(student, teacher, args.methods, args.img_size)
    shares = build_distillers(student, teacher, args.methods, args.img_size, shares=True)
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, 3, args.img_size, args.img_size)
    images = torch.rand(shape, generator=generator).to(device)
    targets = make_targets(args.batch_size, args.boxes, generator)
    targets[:, 1] %= args.classes
    hyp = resolve_hyp("", kind_of_architecture(student.yaml), distil=False).hyp
    criterion, _ = build_criteria(student, hyp, args.img_size, 0.0, device)
    times = measure(Step(student, criterion, images, targets.to(device)), teacher, distillers, shares, args.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    bare = medians["student"] + medians["teacher"]
    print(f"student's step {medians['student']:.1f} ms, teacher's forward pass {medians['teacher']:.1f} ms")
    heading = f"{'measured':>10}{f'{args.steps} steps':>12}"
    print(f"{'method':18}{'parameters':>12}{'ms':>9}{'ms more':>9}{'ratio':>8}{heading}")
    for name, kd in distillers.items():
        parameters = sum(p.numel() for p in kd.parameters())
        # Ratios within a round: what slows the machine down slows all of a round down.
        rounds = zip(times[name], times["student"], times["teacher"])
        ratio = statistics.median(own / (alone + look) for own, alone, look in rounds)
        dearer = statistics.median(own / plain for own, plain in zip(times[of_share(name)], times[name]))
        epoch = 1 + (dearer - 1) * min(AN_EPOCH, args.steps) / args.steps
        share = f"{dearer:>10.3f}{epoch:>12.4f}"
        print(f"{name:18}{parameters:>12,}{medians[name]:>9.1f}{medians[name] - bare:>9.1f}{ratio:>8.3f}{share}")


if __name__ == "__main__":
    run_command(main)
