"""Time of the detection losses beside plain versions that go through the images one by one.

    python -m benchmarks.losses --batch-size 16 --img-size 640 --boxes 3 12 50 100

Both versions of a loss run in turn on the same inputs, and the best round of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.memory import PeakMemory
from benchmarks.reference_losses import reference_simota, reference_yolov5, reference_yolov8
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss
from utils.device import synchronize
from utils.running.cli import run_command

STRIDES = (8, 16, 32)
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)  # pixels
NUM_CLASSES = 80
LOSSES: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "yolov5": (YOLOv5Loss, reference_yolov5),
    "simota": (SimOTALoss, reference_simota),
    "simota_aux": (SimOTAAuxLoss, reference_simota),
    "yolov8": (YOLOv8Loss, reference_yolov8),
}


def make_targets(batch_size: int, boxes_per_image: int, generator: torch.Generator) -> Tensor:
    """(batch_size * boxes_per_image, 6) random rows [image, class, cx, cy, w, h]; small boxes are the most frequent."""
    targets = torch.rand(batch_size * boxes_per_image, 6, generator=generator)
    targets[:, 0] = torch.arange(batch_size).repeat_interleave(boxes_per_image)
    targets[:, 1] = (targets[:, 1] * NUM_CLASSES).floor()
    targets[:, 4:] = 0.02 + 0.6 * targets[:, 4:] ** 3
    return targets


def make_case(name: str, batch_size: int, size: int, device: torch.device) -> tuple[nn.Module, list[Tensor]]:
    """The loss, and random training maps for it."""
    generator = torch.Generator().manual_seed(0)
    grids = [(size // stride, size // stride) for stride in STRIDES]
    loss: nn.Module
    shapes: list[tuple[int, ...]]
    if name == "yolov8":
        loss = YOLOv8Loss(STRIDES, NUM_CLASSES)
        shapes = [(batch_size, 64 + NUM_CLASSES, *grid) for grid in grids]
    else:
        anchors = torch.tensor(ANCHORS, dtype=torch.float32) / torch.tensor(STRIDES)[:, None, None]
        loss = LOSSES[name][0](anchors, STRIDES, NUM_CLASSES)
        branches = 2 if name == "simota_aux" else 1
        shapes = [(batch_size, 3, *grid, 5 + NUM_CLASSES) for _ in range(branches) for grid in grids]
    maps = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    return loss.to(device), maps


def measure(
    versions: Sequence[Callable[[], Tensor]], maps: list[Tensor], repeats: int, device: torch.device
) -> list[tuple[float, float]]:
    """Least milliseconds (forward, backward) of each version, run in turn after one round to warm up."""
    times: list[list[tuple[float, float]]] = [[] for _ in versions]
    for _ in range(repeats + 1):
        for version, record in zip(versions, times):
            synchronize(device)
            start = time.perf_counter()
            loss = version()
            synchronize(device)
            middle = time.perf_counter()
            torch.autograd.grad(loss, maps)
            synchronize(device)
            record.append((1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)))
    return [
        (min(forward for forward, _ in record[1:]), min(backward for _, backward in record[1:])) for record in times
    ]


def peak_mebibytes(version: Callable[[], Tensor]) -> float:
    """What a forward pass holds at most beside its inputs."""
    with PeakMemory() as memory:
        version()
    return memory.peak / 2**20


def print_rows(name: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Times and memory of one loss on one device, a row for each number of boxes."""
    loss, maps = make_case(name, arguments.batch_size, arguments.img_size, device)
    for boxes in arguments.boxes:
        targets = make_targets(arguments.batch_size, boxes, torch.Generator().manual_seed(1))
        versions = [
            partial(lambda *inputs: loss(*inputs)[0], maps, targets),
            partial(LOSSES[name][1], loss, maps, targets.to(device)),
        ]
        (ours, ours_back), (plain, plain_back) = measure(versions, maps, arguments.repeats, device)
        print(
            f"{name:<12}{boxes:>6}{ours:>10.1f}{ours_back:>10.1f}{peak_mebibytes(versions[0]):>8.0f}"
            f"{plain:>12.1f}{plain_back:>10.1f}{peak_mebibytes(versions[1]):>8.0f}"
            f"{plain / ours:>9.1f} x{(plain + plain_back) / (ours + ours_back):>7.1f} x",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--img-size", type=int, default=640)
    parser.add_argument("--boxes", nargs="+", type=int, default=[3, 12, 50, 100], help="boxes an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", nargs="+", help="devices one after the other; default: cpu, and cuda where it is")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    for device in arguments.device or ["cpu", "cuda"][: 1 + torch.cuda.is_available()]:
        print(f"batch {arguments.batch_size}, {arguments.img_size} px, {NUM_CLASSES} classes, {device}; milliseconds")
        print(
            f"{'loss':<12}{'boxes':>6}{'forward':>10}{'backward':>10}{'MiB':>8}"
            f"{'plain':>12}{'backward':>10}{'MiB':>8}{'forward':>11}{'both':>9}"
        )
        for name in arguments.losses:
            print_rows(name, arguments, torch.device(device))
    print("MiB: most held at once in forward beside the inputs; the last columns are plain / ours")


if __name__ == "__main__":
    run_command(main)
