"""A student that starts as a part of its teacher: what it takes, what it keeps of the function, and what is refused."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from models.yolo import Model
from pruning import PruneError, inherit, labels_for_teacher, plan_inheritance, prune
from pruning.pruner import run_for_outputs
from tests.golden import ROOT
from tests.unit.models.architectures import TINY, tiny_mobile, tiny_yolov5, tiny_yolov7, tiny_yolov8

CFG = ROOT / "cfg"
IMAGE = torch.zeros(1, 3, 64, 64, dtype=torch.float64)


def lively(cfg: Any, seed: int = 0, nc: int = 3) -> Model:
    """A model in float64 and evaluation whose BatchNorm has scales, shifts and statistics of every size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model(cfg, nc=nc).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    """An architecture that comes with the software, with changes."""
    return {**yaml.safe_load((CFG / f"{name}.yaml").read_text()), **changes}


def scaled(name: str, depth: float, width: float) -> dict[str, Any]:
    """A shipped architecture with other multiples."""
    cfg = shipped(name)
    if "scales" in cfg:
        return {**cfg, "scales": {"n": [depth, width, 1024]}, "scale": "n"}
    return {**cfg, "depth_multiple": depth, "width_multiple": width}


def doubled(cfg: dict[str, Any]) -> dict[str, Any]:
    """An architecture with twice the widths; multiples would spare one that equals the head's outputs."""
    cfg = copy.deepcopy(cfg)
    for row in (row for part in ("backbone", "head") for row in cfg[part]):
        if row[3] and isinstance(row[3][0], int) and row[3][0] >= 8:
            row[3][0] *= 2
    return cfg


@torch.no_grad()
def outputs(model: Model) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return model.eval()(torch.rand(2, 3, 128, 128, dtype=torch.float64))[0]


def squares(model: nn.Module, images: Tensor) -> Tensor:
    return sum(one.square().mean() for one in run_for_outputs(model, images))  # type: ignore[return-value]


def photos(count: int = 2, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, size, size, dtype=torch.float64, generator=generator) for _ in range(count)]


# ------------------------------------------------------------------------------------------------ the function is kept


@pytest.mark.parametrize("family", list(TINY))
def test_equal_architectures_give_equal_outputs_bit_for_bit(family: str) -> None:
    student, teacher = lively(TINY[family](), 1), lively(TINY[family](), 2)

    def never(*_: Any) -> Tensor:
        raise AssertionError("nothing is cut, so nothing is measured")

    result = inherit(student, teacher, batches=[0], loss=never, images=photos())
    assert torch.equal(outputs(student), outputs(teacher))
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in student.state_dict().items())
    assert result.inherited == result.numbers == sum(p.numel() for p in student.parameters())
    assert (result.estimated, result.importance, result.touched, result.blocks) == (0, "", (), [])


@pytest.mark.parametrize("family", ["yolov5", "yolov7", "yolov8"])
def test_a_student_wider_everywhere_computes_what_its_teacher_does(family: str) -> None:
    student, teacher = lively(doubled(TINY[family]()), 1), lively(TINY[family](), 2)
    fresh = copy.deepcopy(student.state_dict())
    result = inherit(student, teacher, images=photos())
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-10, atol=1e-10)
    assert result.estimated == 0 and result.inherited < result.numbers
    key = next(key for key, value in fresh.items() if key.endswith("conv.weight") and value.dim() == 4)
    before, now = fresh[key], student.state_dict()[key]
    width = teacher.state_dict()[key].shape[0]
    assert torch.equal(now[width:], before[width:])  # incoming weights of new channels are the student's own


def test_one_layer_that_is_wider_while_others_are_narrower() -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][1] = [-1, 1, "Conv", [8, 3, 2]]  # 16 in the teacher
    cfg["backbone"][3] = [-1, 1, "Conv", [32, 3, 2]]  # 24 in the teacher
    student, teacher = lively(cfg, 1), lively(tiny_yolov5(), 2)
    result = inherit(student, teacher, importance="l1", images=photos())
    layers = {layer.name: layer for layer in result.layers}
    assert layers["model.1.conv"].cut and not layers["model.1.conv"].widened
    assert layers["model.3.conv"].widened and layers["model.4.cv1.conv"].zeros == 12 * 8
    assert torch.equal(student.state_dict()["model.4.cv1.conv.weight"][:12, 24:], torch.zeros(12, 8, 1, 1).double())
    kept = teacher.state_dict()["model.3.conv.weight"]
    assert student.state_dict()["model.3.conv.weight"].shape == (32, 16, 3, 3) and kept.shape == (24, 16, 3, 3)


@pytest.mark.parametrize("name", ["yolov5/yolov5n", "yolov8/yolov8n"])
def test_a_deeper_student_keeps_the_function_where_blocks_have_shortcuts(name: str) -> None:
    cfg = scaled(name, 1.0, 0.125)
    cfg["head"] = [[row[0], 1, *row[2:]] for row in cfg["head"]]  # those without shortcuts as they are
    cfg["backbone"] = [[row[0], 2 if row[1] > 1 else 1, *row[2:]] for row in cfg["backbone"]]
    shallow = {**cfg, "backbone": [[row[0], 1, *row[2:]] for row in cfg["backbone"]]}
    student, teacher = lively(cfg, 1), lively(shallow, 2)
    result = inherit(student, teacher, images=photos(1, 128))
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-10, atol=1e-10)
    assert result.touched == () and result.estimated == 0
    assert [(one.teacher, one.student) for one in result.blocks] == [(1, 2)] * 4


def test_a_new_block_without_a_shortcut_is_fresh_and_said_to_be() -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][2] = [-1, 3, "C3", [16, False]]
    shallow = copy.deepcopy(cfg)
    shallow["backbone"][2][1] = 1
    student = lively(cfg, 1)
    fresh = copy.deepcopy(student.state_dict())
    result = inherit(student, lively(shallow, 2), images=photos())
    assert result.touched == (2,) and result.estimated > 0
    assert torch.equal(student.state_dict()["model.2.m.1.cv1.conv.weight"], fresh["model.2.m.1.cv1.conv.weight"])


# ------------------------------------------------------------------------------------------------ what is cut


@pytest.mark.parametrize("family", ["yolov5", "yolov7", "yolov8"])
def test_the_cut_is_the_teacher_with_the_other_channels_gone(family: str) -> None:
    """The first layer alone is narrower: the student computes what the teacher does with these filters at zero."""
    wide, narrow = TINY[family](), TINY[family]()
    row = 1 if family == "yolov7" else 0
    narrow["backbone"][row][3][0] = 8
    wide["backbone"][row][3][0] = 16
    if family == "yolov7":
        for cfg in (narrow, wide):
            cfg["backbone"][3] = [-1, 1, "Conv", [24, 3, 2]]  # DownC is as wide within as what it reads
        narrow["backbone"][2][3][0] = 8  # a RepConv with an identity branch, tied with it
    student, teacher = lively(narrow, 1), lively(wide, 2)
    inherit(student, teacher, importance="l1")
    kept = {tuple(row.flatten().tolist()) for row in student.state_dict()[f"model.{row}.conv.weight"]}
    filters = teacher.state_dict()[f"model.{row}.conv.weight"]
    gone = torch.tensor([tuple(one.flatten().tolist()) not in kept for one in filters])
    assert int(gone.sum()) == 8
    with torch.no_grad():
        for name, module in teacher.named_modules():
            tied = (f"model.{row}.", "model.2.") if family == "yolov7" else (f"model.{row}.",)
            if isinstance(module, nn.BatchNorm2d) and name.startswith(tied):
                for value in (module.weight, module.bias):
                    value[gone] = 0
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("importance", ["taylor", "l1", "l2", "bn", "random"])
def test_the_most_important_channels_stay(importance: str) -> None:
    student, teacher = lively(tiny_yolov5(), 1), lively(doubled(tiny_yolov5()), 2)
    norm = teacher.get_submodule("model.1.bn")
    with torch.no_grad():
        norm.weight[16:], norm.bias[16:] = 1e-4, 0  # of 32
        norm.weight[:16] = 2
        teacher.get_submodule("model.1.conv").weight[:16] *= 5
    result = inherit(student, teacher, importance=importance, batches=photos(), loss=squares, images=photos())
    scales = student.get_submodule("model.1.bn").weight.detach()
    assert result.importance == importance
    assert bool((scales == 2).all()) == (importance != "random")
    again = lively(tiny_yolov5(), 1)
    inherit(again, teacher, importance=importance, batches=photos(), loss=squares, images=photos())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in student.state_dict().items())


def test_random_channels_follow_their_seed() -> None:
    kept = []
    for seed in (0, 0, 1):
        student = lively(tiny_yolov5(), 1)
        inherit(student, lively(doubled(tiny_yolov5()), 2), importance="random", seed=seed)
        kept.append(student.state_dict()["model.3.bn.bias"])
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def chain(shortcut: bool, repeats: int, block: str = "C3") -> dict[str, Any]:
    cfg = tiny_yolov5() if block == "C3" else tiny_yolov8()
    cfg["backbone"][2] = [-1, repeats, block, [16, shortcut]]
    return cfg


def test_of_blocks_with_shortcuts_the_most_important_stay_in_order() -> None:
    student, teacher = lively(chain(True, 2), 1), lively(chain(True, 4), 2)
    with torch.no_grad():
        for number in (0, 2):  # these two do next to nothing
            last = teacher.get_submodule(f"model.2.m.{number}.cv2.bn")
            last.weight.fill_(1e-5), last.bias.zero_()
    result = inherit(student, teacher, batches=photos(), loss=squares)
    (found,) = result.blocks
    assert (found.kept, found.row, found.student, found.teacher) == ((1, 3), 2, 2, 4)
    for mine, other in ((0, 1), (1, 3)):
        ours, theirs = student.state_dict(), teacher.state_dict()
        assert torch.equal(ours[f"model.2.m.{mine}.cv1.conv.weight"], theirs[f"model.2.m.{other}.cv1.conv.weight"])
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-2, atol=0.5)


@pytest.mark.parametrize("block, shortcut", [("C3", False), ("C2f", False), ("C2f", True)])
def test_of_other_blocks_the_first_stay(block: str, shortcut: bool) -> None:
    student, teacher = lively(chain(shortcut, 2, block), 1), lively(chain(shortcut, 4, block), 2)
    with torch.no_grad():
        teacher.get_submodule("model.2.m.0.cv2.bn").weight.fill_(1e-5)
    result = inherit(student, teacher, batches=photos(), loss=squares)
    assert [one.kept for one in result.blocks] == [(0, 1)]
    ours, theirs = student.state_dict(), teacher.state_dict()
    for number in (0, 1):
        key = f"model.2.m.{number}.cv2.conv.weight"
        assert torch.equal(ours[key], theirs[key])
    if block == "C2f":  # the last convolution loses what the other blocks gave
        assert torch.equal(ours["model.2.cv2.conv.weight"], theirs["model.2.cv2.conv.weight"][:, :32])


def test_statistics_are_estimated_behind_cuts_alone() -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][3][3][0] = 16  # 24 in the teacher; SPPF reads it
    student, teacher = lively(cfg, 1), lively(tiny_yolov5(), 2)
    result = inherit(student, teacher, importance="l1", images=photos())
    ours, theirs = student.state_dict(), teacher.state_dict()
    changed = {key for key in ours if "running" in key and not _within(ours[key], theirs[key])}
    assert changed and all(key.startswith("model.4.") for key in changed)
    assert result.estimated == 2 and result.touched == (4,)


def _within(ours: Tensor, theirs: Tensor) -> bool:
    return set(ours.tolist()) <= set(theirs.tolist())


# ------------------------------------------------------------------------------------------------ classes and anchors


@pytest.mark.parametrize("make, layer", [(tiny_yolov5, "model.5.m.0"), (tiny_mobile, "model.1")])
def test_class_rows_of_every_anchor_follow_the_pairs(make: Any, layer: str) -> None:
    student, teacher = lively(make(), 1, nc=2), lively(make(), 2, nc=4)
    fresh = student.state_dict()[f"{layer}.weight"].clone()
    result = inherit(student, teacher, classes=[(1, 3)], importance="l1")
    ours, theirs = student.state_dict()[f"{layer}.weight"], teacher.state_dict()[f"{layer}.weight"]
    for anchor in range(2):
        mine, other = ours[anchor * 7 : anchor * 7 + 7], theirs[anchor * 9 : anchor * 9 + 9]
        assert torch.equal(mine[:5], other[:5]) and torch.equal(mine[6], other[5 + 3])
        assert torch.equal(mine[5], fresh[anchor * 7 + 5])
    assert result.classes == (1, 2) and result.touched == ()


def test_class_rows_of_implicit_layers_and_auxiliary_maps_follow_too() -> None:
    student, teacher = lively(tiny_yolov7(), 1, nc=2), lively(tiny_yolov7(), 2, nc=4)
    fresh = copy.deepcopy(student.state_dict())
    inherit(student, teacher, classes=[(1, 3)], importance="l1")
    ours, theirs = student.state_dict(), teacher.state_dict()
    for key in ("model.8.m.0.bias", "model.8.m2.1.bias", "model.8.im.1.implicit"):
        mine, other, own = (values[key].flatten().unflatten(0, (2, -1)) for values in (ours, theirs, fresh))
        assert torch.equal(mine[:, [0, 1, 2, 3, 4, 6]], other[:, [0, 1, 2, 3, 4, 8]])
        assert torch.equal(mine[:, 5], own[:, 5])


def test_class_rows_of_a_head_without_anchors_follow_the_pairs() -> None:
    student, teacher = lively(tiny_yolov8(), 1, nc=3), lively(tiny_yolov8(), 2, nc=64)  # as many as bins of distances
    fresh = student.state_dict()["model.5.cv3.0.2.bias"].clone()
    inherit(student, teacher, classes=[(0, 63), (2, 1)], importance="l1")
    ours, theirs = student.state_dict(), teacher.state_dict()
    rows = [theirs["model.5.cv3.0.2.bias"][63], fresh[1], theirs["model.5.cv3.0.2.bias"][1]]
    assert torch.equal(ours["model.5.cv3.0.2.bias"], torch.stack(rows))
    assert torch.equal(ours["model.5.cv2.0.2.bias"], theirs["model.5.cv2.0.2.bias"])


def test_without_a_common_class_taylor_becomes_l1() -> None:
    student = lively(tiny_yolov5(), 1, nc=2)
    other = lively(tiny_yolov5(), 1, nc=2)
    teacher = lively(doubled(tiny_yolov5()), 2)
    result = inherit(student, teacher, classes=[])
    assert (result.importance, result.classes) == ("l1", (0, 2))
    inherit(other, teacher, classes=[], importance="l1")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in student.state_dict().items())


def test_labels_become_the_teachers() -> None:
    targets = torch.tensor([[0, 0, 0.1, 0.2, 0.3, 0.4], [0, 1, 0.5, 0.5, 0.1, 0.1], [1, 2, 0.2, 0.2, 0.2, 0.2]])
    mapped = labels_for_teacher(targets, [(0, 7), (2, 0)])
    assert mapped[:, :2].tolist() == [[0, 7], [1, 0]] and torch.equal(mapped[:, 2:], targets[[0, 2], 2:])
    assert labels_for_teacher(targets[:0], [(0, 7)]).shape == labels_for_teacher(targets, []).shape == (0, 6)


@pytest.mark.parametrize("make", [tiny_yolov5, tiny_yolov7])
def test_anchors_are_the_teachers(make: Any) -> None:
    student, teacher = lively(make(anchors=[[5, 5, 6, 6], [7, 7, 8, 8]]), 1), lively(make(), 2)
    assert inherit(student, teacher).anchors == "teacher"
    assert torch.equal(student.head.anchors_px, teacher.head.anchors_px)
    fewer = lively(make(anchors=[[5, 5], [7, 7]]), 1)
    own = fewer.head.anchors_px.clone()
    result = inherit(fewer, teacher)
    assert result.anchors == "student" and torch.equal(fewer.head.anchors_px, own)


# ------------------------------------------------------------------------------------------------ what is left alone


def test_no_random_stream_advances_and_the_teacher_stays_as_it_was() -> None:
    student, teacher = lively(tiny_yolov5(), 1), lively(doubled(tiny_yolov5()), 2).train()
    teacher.requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def noisy(model: nn.Module, images: Tensor) -> Tensor:
        return squares(model, images + 0.01 * torch.rand_like(images))

    inherit(student, teacher, batches=photos(), loss=noisy, images=photos())
    inherit(student, teacher, importance="random", images=photos())
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1] == random.getstate() and streams[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert teacher.training and not student.training and not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_plan_says_what_will_be_inherited_without_weights() -> None:
    with torch.device("meta"):
        student, teacher = Model(tiny_yolov5(), nc=2), Model(doubled(tiny_yolov5()))
    plan = plan_inheritance(student, teacher, classes=[(0, 1)])
    real = lively(tiny_yolov5(), 1, nc=2)
    result = inherit(real, lively(doubled(tiny_yolov5()), 2), classes=[(0, 1)], importance="l1")
    assert (plan.layers, plan.touched, plan.classes) == (result.layers, result.touched, result.classes)
    assert len(plan.table()) == len(plan.layers) and "convolutions are narrower" in plan.describe()


def test_a_head_of_other_strides_is_refused() -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][0] = [-1, 2, "Conv", [8, 3, 2]]
    with pytest.raises(PruneError, match=r"row 5 .the head. differs: strides \[8.0, 16.0\] in the student"):
        inherit(lively(cfg, 1), lively(tiny_yolov5(), 2))


def test_a_branch_that_only_one_network_has_is_refused() -> None:
    cfg = tiny_yolov7()
    cfg["backbone"][2][3][0] = 24  # the RepConv has no branch for its input
    with pytest.raises(PruneError, match="row 2 .RepConv. differs: only the teacher has BatchNorm2d 'rbr_identity'"):
        inherit(lively(cfg, 1), lively(tiny_yolov7(), 2))


def test_a_pair_that_does_not_fit_leaves_the_student_as_it_was() -> None:
    cfg = tiny_yolov5()
    cfg["backbone"][3][3] = [24, 5, 2]
    student = lively(cfg, 1)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(PruneError, match=r"^row 3 \(Conv\) differs: a kernel size of \(5, 5\) in the student"):
        inherit(student, lively(tiny_yolov5(), 2))
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


# ------------------------------------------------------------------------------------------------ forms and pairs


def test_pruned_students_and_teachers() -> None:
    teacher = lively(tiny_yolov5(), 2)
    pruned = copy.deepcopy(teacher)
    prune(pruned, 0.4, image=IMAGE, round_to=2, min_keep=0.1)
    student = lively(pruned.yaml, 1)
    inherit(student, teacher, importance="bn", images=photos())
    shapes = {key: value.shape for key, value in pruned.state_dict().items()}
    assert {key: value.shape for key, value in student.state_dict().items()} == shapes
    full = lively(tiny_yolov5(), 3)
    inherit(full, pruned)
    torch.testing.assert_close(outputs(full), outputs(pruned), rtol=1e-10, atol=1e-10)
    again = lively(pruned.yaml, 4)
    inherit(again, pruned)
    assert torch.equal(outputs(again), outputs(pruned))


def test_a_teacher_in_deployment_form() -> None:
    trained = lively(tiny_yolov7(), 2)
    teacher = copy.deepcopy(trained).reparameterize()
    student = lively(tiny_yolov7(), 1)
    fresh = copy.deepcopy(student.state_dict())
    result = inherit(student, teacher)
    assert torch.equal(outputs(student), outputs(teacher))
    assert result.fresh_rows == [6, 7] and result.anchors == "teacher"
    assert not student.head.ia[0].implicit.any() and bool((student.head.im[0].implicit == 1).all())
    for key in ("model.6.conv.weight", "model.8.m2.0.weight"):
        assert torch.equal(student.state_dict()[key], fresh[key])
    deployed = lively(tiny_yolov7(), 1).reparameterize()
    inherit(deployed, trained)
    torch.testing.assert_close(outputs(deployed), outputs(trained), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", list(TINY))
def test_folded_batchnorm_is_refused(family: str) -> None:
    for who in ("teacher", "student"):
        student, teacher = lively(TINY[family](), 1), lively(TINY[family](), 2)
        (teacher if who == "teacher" else student).fuse()
        with pytest.raises(PruneError, match=f"the {who}'s BatchNorm was folded"):
            inherit(student, teacher)


def test_a_repeated_row_is_paired_with_a_single_one() -> None:
    cfg, deep = tiny_yolov5(), tiny_yolov5()
    for one in (cfg, deep):
        one["backbone"].insert(2, [-1, 1, "Conv", [16, 3]])
        one["head"][1][0] = [3, 5]
    deep["backbone"][2][1] = 3
    student, teacher = lively(cfg, 1), lively(deep, 2)
    (found,) = inherit(student, teacher).blocks
    assert (found.kept, found.student, found.teacher) == ((0,), 1, 3)
    assert torch.equal(student.state_dict()["model.2.conv.weight"], teacher.state_dict()["model.2.0.conv.weight"])
    other = lively(deep, 3)
    inherit(other, student)
    assert torch.equal(other.state_dict()["model.2.0.conv.weight"], teacher.state_dict()["model.2.0.conv.weight"])


def test_a_shortcut_that_only_one_network_has_is_noted() -> None:
    cfg = chain(False, 1)
    for student, teacher, who in ((cfg, tiny_yolov5(), "teacher"), (tiny_yolov5(), cfg, "student")):
        result = inherit(lively(student, 1), lively(teacher, 2), importance="l1", images=photos())
        assert result.notes == [f"a shortcut in the {who} only (row 2)"] and 2 in result.touched
    quarter, half = (shipped("mobile/mobilenetv2-yolov5s", width_multiple=width) for width in (0.25, 0.5))
    assert "a shortcut in the student only (row 1)" in plan_inheritance(Model(quarter), Model(half)).notes


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        ("yolov5/yolov5n", "yolov5/yolov5n6", "row 9 differs: SPPF in the student, Conv in the teacher"),
        ("yolov5/yolov5n6", "yolov5/yolov5n", "row 9 differs: Conv in the student, SPPF in the teacher"),
        ("yolov7/yolov7-tiny", "yolov7/yolov7", "row 3 .Conv. differs: it reads"),
        ("yolov8/yolov8p", "yolov5/yolov5n", "row 2 differs: C2f in the student, C3 in the teacher"),
        ("yolov5/yolov5p", "mobile/mobilenetv2-yolov5s", "row 1 differs: Conv in the student, InvertedResidual"),
    ],
)
def test_pairs_of_other_rows_are_refused_in_one_line(student: str, teacher: str, message: str) -> None:
    with torch.device("meta"):
        pair = [Model(CFG / f"{name}.yaml", nc=3) for name in (student, teacher)]
    with pytest.raises(PruneError, match=message) as caught:
        plan_inheritance(*pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [[(0, 3)], [(0, 0), (0, 1)], [(0, 1), (1, 1)], [(-1, 0)]])
def test_pairs_of_classes_that_cannot_be(classes: list[tuple[int, int]]) -> None:
    with pytest.raises(PruneError, match="give each class once"):
        inherit(lively(tiny_yolov5()), lively(tiny_yolov5()), classes=classes)
    with pytest.raises(PruneError, match="the student has 2 classes, the teacher 3; give the pairs"):
        inherit(lively(tiny_yolov5(), nc=2), lively(tiny_yolov5()))


def test_other_mistakes() -> None:
    student, teacher = lively(tiny_yolov5(), 1), lively(doubled(tiny_yolov5()), 2)
    with pytest.raises(PruneError, match="unknown importance 'best'"):
        inherit(student, teacher, importance="best")
    with pytest.raises(PruneError, match="taylor importance needs data"):
        inherit(student, teacher)
    with pytest.raises(PruneError, match="at least one batch"):
        inherit(student, teacher, batches=[], loss=squares)
    with pytest.raises(PruneError, match="the teacher is no sequence of rows"):
        inherit(student, nn.Conv2d(3, 3, 1))
