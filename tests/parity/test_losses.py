"""Values, gradients and assignments of the detection losses against those of the original implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reference_losses import reference_simota
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss, scale_gains
from losses.anchor_assign import Assignment
from losses.anchor_based import AnchorLoss
from losses.functional import binary_cross_entropy, smoothed_targets
from losses.iou import box_overlap
from losses.yolov8 import decode_distances, distribution_focal_loss, make_points, read_boxes
from tests.golden import golden_files, load_json, load_npz, meta

ANCHOR_LOSSES = {"ComputeLoss": YOLOv5Loss, "ComputeLossOTA": SimOTALoss, "ComputeLossAuxOTA": SimOTAAuxLoss}
ITEMS = {"ComputeLoss": ("box", "obj", "cls"), "v8DetectionLoss": ("box", "cls", "dfl")}


class Case:
    """One result of one golden file, and the loss that has to give it."""

    def __init__(self, case: str, key: str, dtype: torch.dtype = torch.float64) -> None:
        self.arrays = load_npz(f"loss/{case}.npz")
        self.meta = meta(self.arrays)
        self.case, self.key = case, key
        self.implementation, self.loss_name, _ = key.split("/")
        self.result = self.meta["results"][key]
        self.targets = torch.from_numpy(self.arrays["targets"])
        num_maps = len(self.meta["strides"]) * (2 if self.loss_name == "ComputeLossAuxOTA" else 1)
        maps = [torch.from_numpy(self.arrays[f"p{i}"].astype(np.float32)) for i in range(num_maps)]
        self.maps = [values.to(dtype).requires_grad_() for values in maps]

    def anchor_loss(self) -> AnchorLoss:
        strides = torch.tensor(self.meta["strides"], dtype=torch.float32)
        anchors = torch.tensor(self.meta["anchors_px"], dtype=torch.float32)
        anchors = anchors.view(len(strides), -1, 2) / strides[:, None, None]
        settings: dict[str, Any] = dict(self.result["hyp"])
        settings["height_eps"] = 1e-7 if self.implementation == "yolov7" else 0.0
        if self.loss_name != "ComputeLoss":
            settings["height_only_scale"] = True
        return ANCHOR_LOSSES[self.loss_name](anchors, strides, self.meta["nc"], **settings)

    def yolov8_loss(self) -> YOLOv8Loss:
        later = self.implementation == "ultralytics_8.4.190"
        return YOLOv8Loss(self.meta["strides"], self.meta["nc"], enlarge_small_boxes=later, **self.result["hyp"])

    def array(self, name: str) -> np.ndarray:
        return self.arrays[f"{self.key}/{name}"]


def all_results(*loss_names: str) -> list[tuple[str, str]]:
    found = []
    for path in golden_files("loss", "*.npz"):
        for key in meta(load_npz(f"loss/{path.name}"))["results"]:
            if key.split("/")[1] in loss_names:
                found.append((path.stem, key))
    return found or [("p5_main", f"yolov7/{loss_names[0]}/default")]


def assert_equal_to_golden(case: Case, loss: Tensor, items: dict[str, Tensor], rtol: float) -> None:
    loss.backward()
    torch.testing.assert_close(loss.item(), case.result["total"], rtol=rtol, atol=0)
    names = ITEMS.get(case.loss_name, ITEMS["ComputeLoss"])
    assert tuple(items) == names
    for name, expected in zip(names, case.result["items"]):
        torch.testing.assert_close(items[name].item(), expected, rtol=rtol, atol=1e-12)
    for level, (prediction, summary) in enumerate(zip(case.maps, case.result["grads"])):
        assert prediction.grad is not None
        gradient = prediction.grad.double().flatten()
        # The arrays are stored as float32. In float32 we may be off by a few times what the original itself is off by.
        deviation = 4 * summary["f32_maxdev"] if case.maps[0].dtype == torch.float32 else 0.0
        tolerance = {"rtol": 1e-6, "atol": 1e-7 * gradient.abs().max().item() + deviation}
        sampled = torch.from_numpy(case.array(f"g{level}")).double()
        torch.testing.assert_close(gradient[:: summary["step"]], sampled, **tolerance)
        largest = torch.from_numpy(case.array(f"g{level}_top_val")).double()
        index = torch.from_numpy(case.array(f"g{level}_top_idx")).long()
        torch.testing.assert_close(gradient[index], largest, **tolerance)
        assert gradient.abs().sum().item() == pytest.approx(summary["abs_sum"], rel=rtol)
        assert gradient.square().sum().item() == pytest.approx(summary["sq_sum"], rel=10 * rtol)
        assert gradient.sum().item() == pytest.approx(summary["sum"], abs=rtol * summary["abs_sum"])


PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-6)]


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize(("case_name", "key"), all_results(*ANCHOR_LOSSES))
def test_anchor_losses(case_name: str, key: str, dtype: torch.dtype, rtol: float) -> None:
    case = Case(case_name, key, dtype)
    assert_equal_to_golden(case, *case.anchor_loss()(case.maps, case.targets), rtol)


@pytest.mark.parametrize("case_name", ["p5_nc1", "p5_tiny", "p6_aux"])
def test_equal_costs_decide_the_value(case_name: str) -> None:
    """Copies of a candidate cell cost the same, and which of them a box takes changes the loss.

    A GPU, or a compiled graph, takes the first one. `torch.topk` on the CPU, which the original asks, follows no order
    (`TestSimOTAMatching.test_no_order_of_the_candidates_explains_torch_topk`); here that is worth 0.1 to 0.4 %.
    """
    case = Case(case_name, "yolov7/ComputeLossOTA/default")
    loss = case.anchor_loss()
    with torch.no_grad():
        first_of_equals = reference_simota(loss, case.maps, case.targets, stable=True).item()
        as_original = reference_simota(loss, case.maps, case.targets).item()
    assert as_original == pytest.approx(case.result["total"], rel=1e-12)
    assert 5e-4 < abs(first_of_equals / case.result["total"] - 1) < 5e-3


def test_images_that_are_not_square() -> None:
    """The original scales the boxes by the height on both axes while it matches; by default we do not."""
    case = Case("p5_rect", "yolov7/ComputeLossOTA/default")
    loss = case.anchor_loss()
    assert isinstance(loss, SimOTALoss) and loss.height_only_scale
    assert loss(case.maps, case.targets)[0].item() == pytest.approx(case.result["total"], rel=1e-12)
    loss.height_only_scale = False
    ours = loss(case.maps, case.targets)[0].item()
    assert ours == pytest.approx(reference_simota(loss, case.maps, case.targets).item(), rel=1e-12)
    assert ours != pytest.approx(case.result["total"], rel=1e-3)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize(("case_name", "key"), all_results("v8DetectionLoss"))
def test_yolov8_loss(case_name: str, key: str, dtype: torch.dtype, rtol: float) -> None:
    case = Case(case_name, key, dtype)
    assert_equal_to_golden(case, *case.yolov8_loss()(case.maps, case.targets), rtol)


def entries(assignment: Assignment, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Valid entries: rows [image, anchor, row, column], classes, boxes."""
    valid = assignment.valid.numpy()
    cells = np.stack(np.unravel_index(assignment.position.numpy()[valid], shape[:4]), 1)
    return cells, assignment.classes.numpy()[valid], assignment.boxes.numpy()[valid]


MATCHED = [(case, key) for case, key in all_results("ComputeLoss") if key.endswith(("/default", "/at29"))]


@pytest.mark.parametrize(("case_name", "key"), MATCHED)
def test_anchor_ratio_assignment_has_the_original_order(case_name: str, key: str) -> None:
    case = Case(case_name, key)
    loss = case.anchor_loss()
    assert isinstance(loss, YOLOv5Loss)
    for level, assignment in enumerate(loss.assign_cells(case.maps, case.targets)):
        cells, classes, boxes = entries(assignment, tuple(case.maps[level].shape))
        np.testing.assert_array_equal(cells, case.array(f"m{level}_idx"))
        np.testing.assert_array_equal(classes, case.array(f"m{level}_tcls"))
        np.testing.assert_allclose(boxes, case.array(f"m{level}_tbox"), rtol=1e-6, atol=1e-6)


SIMOTA_MATCHED = [
    (case, key)
    for case, key in all_results("ComputeLossOTA", "ComputeLossAuxOTA")
    if key.endswith(("/default", "/at29"))
]


@pytest.mark.parametrize(("case_name", "key"), SIMOTA_MATCHED)
def test_simota_assignment(case_name: str, key: str) -> None:
    case = Case(case_name, key)
    loss = case.anchor_loss()
    assert isinstance(loss, SimOTALoss)
    lead = case.maps[: loss.num_levels]
    assignments = loss.assign_cells(lead, case.targets)
    if isinstance(loss, SimOTAAuxLoss):
        assignments += loss.assign_cells(lead, case.targets, reach=1.0)
    for index, assignment in enumerate(assignments):
        shape = tuple(case.maps[index].shape)
        cells, classes, boxes = entries(assignment, shape)
        expected_cells = case.array(f"m{index}_idx").astype(int)
        rows = case.targets.numpy()[case.array(f"m{index}_trow")]
        sizes = rows[:, 2:6] * np.array([shape[3], shape[2]] * 2)
        sizes[:, :2] -= expected_cells[:, [3, 2]]
        ours = np.column_stack([cells, classes, boxes.round(4)])
        expected = np.column_stack([expected_cells, rows[:, 1], sizes.round(4)])
        assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize(("case_name", "key"), all_results("v8DetectionLoss"))
def test_task_aligned_assignment(case_name: str, key: str) -> None:
    case = Case(case_name, key)
    loss = case.yolov8_loss()
    expected = {
        (image, point): (target, score)
        for (image, point), target, score in zip(
            case.array("m0_idx").tolist(), case.array("m0_trow").tolist(), case.array("m0_score").tolist()
        )
        if score > 0  # a point with the score 0 is a background point in all but name
    }
    outputs = torch.cat([level.flatten(2) for level in case.maps], 2)
    grids = [tuple(level.shape[2:]) for level in case.maps]
    points, strides = make_points(grids, loss.strides, outputs.device, outputs.dtype)
    seen = loss._look(outputs[:, :64], outputs[:, 64:], points, strides)
    boxes = read_boxes(case.targets.double(), case.meta["width"], case.meta["height"])
    found = loss.assigner(seen, boxes)
    kept = found.valid.nonzero().flatten().tolist()
    ours = {(int(found.image[i]), int(found.point[i])): (int(found.target[i]), float(found.score[i])) for i in kept}
    assert len(ours) == len(kept), "a point has two boxes"
    assert ours.keys() == expected.keys()
    for place, (target, score) in expected.items():
        assert ours[place][1] == pytest.approx(score, rel=1e-5, abs=1e-30)
        torch.testing.assert_close(case.targets[ours[place][0], 1:], case.targets[target, 1:], rtol=0, atol=0)
    assert found.score.sum().item() == pytest.approx(case.result["target_score_sum"], rel=1e-9)


ROUNDING = {"yolov5_7.0": (0.0, 0.0), "yolov7": (1e-7, 1e-7), "ultralytics_8.2.103": (0.0, 0.0)}


@pytest.mark.parametrize("implementation", ROUNDING)
@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_box_overlap(implementation: str, kind: Any) -> None:
    helpers = load_json("postprocess/helpers.json")
    inputs, expected = helpers["yolov7"]["box_pairs"], helpers[implementation]["box_pairs"]
    boxes1 = torch.tensor(inputs["box1_xywh"], dtype=torch.float64)
    boxes2 = torch.tensor(inputs["box2_xywh"], dtype=torch.float64)
    height_eps, aspect_eps = ROUNDING[implementation]
    ours = box_overlap(boxes1, boxes2, kind, height_eps=height_eps, aspect_eps=aspect_eps)
    torch.testing.assert_close(ours, torch.tensor(expected[kind], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_box_overlap_of_corners() -> None:
    helpers = load_json("postprocess/helpers.json")
    inputs, expected = helpers["yolov7"]["box_pairs"], helpers["ultralytics_8.2.103"]["box_pairs"]["ciou_xyxy_mode"]
    corners = []
    for name in ("box1_xywh", "box2_xywh"):
        boxes = torch.tensor(inputs[name], dtype=torch.float64)
        corners.append(torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1))
    ours = box_overlap(corners[0], corners[1], "ciou", box_format="xyxy", height_eps=1e-7)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_focal_loss_and_label_smoothing() -> None:
    golden = load_json("postprocess/helpers.json")["yolov7"]["focal"]
    logits = torch.tensor(golden["logits"], dtype=torch.float64)
    for targets, expected in (("target", "focal15"), ("target_soft", "focal15_soft")):
        ours = binary_cross_entropy(logits, torch.tensor(golden[targets], dtype=torch.float64), gamma=1.5)
        torch.testing.assert_close(ours, torch.tensor(golden[expected], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert smoothed_targets(0.1) == tuple(golden["smooth_bce_01"])


def test_points_distances_and_distribution_focal_loss() -> None:
    golden = load_json("postprocess/helpers.json")["ultralytics_8.2.103"]
    grids = [tuple(grid) for grid in golden["make_anchors"]["feat_hw"]]
    points, strides = make_points(grids, golden["make_anchors"]["strides"], torch.device("cpu"), torch.float32)
    assert points.tolist() == golden["make_anchors"]["points"]
    assert strides.tolist() == golden["make_anchors"]["stride"]

    logits = torch.tensor(golden["dfl"]["pred"], dtype=torch.float64).view(-1, 4, 16)
    distances = torch.tensor(golden["dfl"]["target"], dtype=torch.float64)
    expected = torch.tensor(golden["dfl"]["loss"], dtype=torch.float64).flatten()
    torch.testing.assert_close(distribution_focal_loss(logits, distances), expected, rtol=1e-6, atol=0)

    # Logits that leave all weight on one bin decode to that bin: dist2bbox with whole distances.
    bins = torch.tensor([[1, 4, 1, 5]])
    certain = torch.full((1, 4, 16), -1000.0).scatter(2, bins[..., None], 0.0)
    assert decode_distances(certain, torch.tensor([[0.5, 0.5]])).tolist() == [[-0.5, -3.5, 1.5, 5.5]]


@pytest.mark.parametrize("implementation", ["yolov7", "yolov5_7.0"])
def test_gain_scaling(implementation: str) -> None:
    golden = load_json("postprocess/schedules.json")[implementation]
    base = golden["gain_base"]
    for row in golden["gain_scaling"]:
        ours = scale_gains(base["box"], base["cls"], base["obj"], row["nl"], row["nc"], row["imgsz"])
        assert ours == pytest.approx((row["box"], row["cls"], row["obj"]), rel=1e-12)
