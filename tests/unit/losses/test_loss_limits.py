"""Detection losses at their limits: odd boxes, extreme logits, one class, compilation, waiting for a device, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import losses.anchor_assign
import losses.functional
import losses.simota
from benchmarks.memory import PeakMemory
from losses.functional import row_blocks
from tests.unit.losses.loss_toys import LOSSES, REFERENCES, make_loss, make_maps, make_targets, value_and_gradients

ODD_BOXES = {
    "no width": [0.4, 0.5, 0.0, 0.3],
    "no height": [0.4, 0.5, 0.3, 0.0],
    "a point": [0.4, 0.5, 0.0, 0.0],
    "a point in the corner": [1.0, 1.0, 0.0, 0.0],
    "hardly anything": [0.4, 0.5, 1e-7, 1e-7],
    "a line": [0.5, 0.5, 1.0, 1e-4],
    "everything": [0.5, 0.5, 1.0, 1.0],
    "on the left border": [0.0, 0.5, 0.2, 0.2],
    "in the last corner": [1.0, 1.0, 0.2, 0.2],
    "right of the image": [1.3, 0.5, 0.2, 0.2],
    "above the image": [0.5, -0.3, 0.2, 0.2],
    "wider than the image": [0.5, 0.5, 2.0, 0.2],
}


def assert_agree(ours: list[Tensor], expected: list[Tensor], rtol: float = 1e-5) -> None:
    for value, other in zip(ours, expected):
        assert value.isfinite().all()
        torch.testing.assert_close(value, other, rtol=rtol, atol=rtol * other.abs().max().item())


@pytest.mark.parametrize("name", LOSSES)
class TestValues:
    @pytest.mark.parametrize("box", ODD_BOXES.values(), ids=ODD_BOXES)
    def test_odd_boxes(self, name: str, box: list[float]) -> None:
        """Alone and beside a proper one: finite, and what the plain version gives."""
        loss, maps = make_loss(name), make_maps(name)
        odd, proper = torch.tensor([1.0, 0, *box]), torch.tensor([1, 2, 0.5, 0.5, 0.3, 0.4])
        for targets in (odd[None], torch.stack([proper, odd])):
            plain = REFERENCES[name](loss, maps, targets)
            assert_agree(value_and_gradients(loss, maps, targets), [plain.detach(), *torch.autograd.grad(plain, maps)])

    @pytest.mark.parametrize("boxes", [0, 8])
    def test_one_class(self, name: str, boxes: int) -> None:
        loss, maps, targets = make_loss(name, 1), make_maps(name, num_classes=1), make_targets(boxes)
        targets[:, 1] = 0
        plain = REFERENCES[name](loss, maps, targets)
        total, items = loss(maps, targets)
        torch.testing.assert_close(total, plain)
        assert (items["cls"].item() == 0) == (name != "yolov8")

    @pytest.mark.parametrize("value", [-60.0, -30.0, 30.0, 60.0])
    def test_extreme_logits(self, name: str, value: float) -> None:
        """Cross-entropy on logits does not saturate: float32 gives the value of float64, and finite gradients."""
        loss, targets = make_loss(name), make_targets(5)
        maps = [torch.full_like(level, value).requires_grad_() for level in make_maps(name)]
        exact = [level.detach().double().requires_grad_() for level in maps]
        ours, expected = value_and_gradients(loss, maps, targets), value_and_gradients(loss, exact, targets)
        assert_agree(ours, [other.float() for other in expected])


@pytest.mark.parametrize("name", LOSSES)
class TestDevices:
    def test_nothing_waits_for_the_device(self, name: str) -> None:
        """On fake tensors of a GPU, reading a value or a size that depends on one is an error."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            loss = make_loss(name).to("cuda")
            maps = [torch.empty(level.shape, device="cuda", dtype=torch.float16) for level in make_maps(name)]
            for boxes in (0, 9):
                total, _ = loss(maps, torch.empty(boxes, 6, device="cuda"))
                assert total.device.type == "cuda" and total.shape == ()
            with pytest.raises(DynamicOutputShapeException):  # what would have happened
                torch.empty(9, device="cuda").nonzero()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("where", ["cpu", "cuda"])
    def test_a_gpu_gives_the_same_without_waiting(self, name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(losses.simota, "sizes_readable", lambda tensor: False)  # the first of equal candidates
        loss, maps, targets = make_loss(name), make_maps(name), make_targets(9)
        expected = value_and_gradients(loss, maps, targets)
        loss, there = loss.to("cuda"), [level.detach().cuda().requires_grad_() for level in maps]
        targets = targets.to(where)
        value_and_gradients(loss, there, targets)  # the libraries may wait when they are first used
        torch.cuda.set_sync_debug_mode("error")
        try:
            ours = value_and_gradients(loss, there, targets)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_agree([value.cpu() for value in ours], expected, 1e-4)

    @pytest.mark.slow
    def test_a_compiled_loss_gives_the_same(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(losses.simota, "sizes_readable", lambda tensor: False)  # the first of equal candidates
        loss, maps = make_loss(name), make_maps(name)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        for boxes in (3, 5, 9):
            targets = make_targets(boxes)
            assert_agree(value_and_gradients(compiled, maps, targets), value_and_gradients(loss, maps, targets))


@pytest.mark.parametrize("name", ["yolov5", "simota", pytest.param("simota_aux", marks=pytest.mark.slow), "yolov8"])
def test_one_graph_serves_any_number_of_boxes(name: str) -> None:
    """The first graph knows its number of boxes; the second serves all others."""
    loss, maps = make_loss(name), make_maps(name)
    backend = CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for boxes in (3, 5, 7, 20, 33):
        assert compiled(maps, make_targets(boxes))[0].isfinite()
    assert backend.frame_count <= 2


class TestMemory:
    def test_peak_memory_of_a_computation(self) -> None:
        with PeakMemory() as memory:
            first = torch.zeros(1000)
            view = first.view(10, 100)
            view += 1
            del first, view
            second = torch.zeros(500)
        assert memory.peak == 4000 and second.numel() == 500

    @pytest.mark.parametrize("on_device", [False, True])
    @pytest.mark.parametrize(("name", "limits"), {"yolov5": (1, 2), "simota": (3, 5), "simota_aux": (3, 5)}.items())
    def test_crowded_images(
        self, name: str, limits: tuple[int, int], on_device: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Matching compares all boxes with all candidates, but only so many pairs at once.

        All pairs of 300 boxes in each of two images would need 19 MiB, and 174 MiB where the padding cannot be cut.
        """
        if on_device:
            for module in (losses.anchor_assign, losses.simota):
                monkeypatch.setattr(module, "sizes_readable", lambda tensor: False)
        loss, maps, targets = make_loss(name), make_maps(name, images=2), make_targets(300, images=(0, 1))
        monkeypatch.setattr(losses.functional, "PAIRS_AT_ONCE", 1 << 16)
        with torch.no_grad(), PeakMemory() as memory:
            loss(maps, targets)
        assert memory.peak < limits[on_device] * 2**20

    @pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1 << 30), (3, 1 << 30), (300, 100_000), (7, 3)])
    def test_blocks_of_rows(self, rows: int, columns: int) -> None:
        blocks = row_blocks(rows, columns)
        assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
        for block in blocks:
            num_rows = block.stop - block.start
            assert num_rows <= 2 or num_rows * columns <= 2 * losses.functional.PAIRS_AT_ONCE
