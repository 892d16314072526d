"""Distillation losses against values and gradients of the methods' official implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import DistillContext, DistillSetup, HeadSpec, Level
from distill.losses.at import AttentionTransfer, attention
from distill.losses.cwd import CWD, channel_wise_kl
from distill.losses.cwd import standardise as batch_standardise
from distill.losses.fbkd import FBKD
from distill.losses.fgd import FGD, channel_attention, scale_masks, spatial_attention
from distill.losses.kl import softened_binary_kl, softened_kl
from distill.losses.l2 import L2, MODES
from distill.losses.ld import side_divergence
from distill.losses.mgd import MASKS, MGD, generation_error
from distill.losses.output import Output
from distill.losses.pkd import PKD, pearson_loss, resize
from distill.losses.pkd import standardise as pearson_standardise
from distill.losses.self_distillation import class_divergence
from tests.golden import golden_files, load_npz

Arrays = dict[str, np.ndarray]
PRECISIONS = {"float64": (torch.float64, 1e-7), "float32": (torch.float32, 1e-4)}
both_precisions = pytest.mark.parametrize("precision", PRECISIONS)


def cases(pattern: str) -> Any:
    return pytest.mark.parametrize("case", [path.stem for path in golden_files("distill", pattern)])


def load(case: str) -> Arrays:
    return load_npz(f"distill/{case}.npz")


def tensor(array: np.ndarray, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.from_numpy(array.copy()).to(dtype).requires_grad_(grad)


def setup_of(students: list[Tensor], teachers: list[Tensor]) -> DistillSetup:
    levels = [
        Level(f"P{3 + i}", i, i, s.shape[1], t.shape[1], 8 << i) for i, (s, t) in enumerate(zip(students, teachers))
    ]
    return DistillSetup(tuple(levels))


def context_of(arrays: Mapping[str, np.ndarray]) -> DistillContext:
    boxes = torch.from_numpy(arrays.get("in_boxes", np.zeros((0, 5), np.float32)).copy())
    hw = tuple(int(side) for side in arrays.get("in_image_hw", np.array((64, 64))))
    return DistillContext((hw[0], hw[1]), boxes[:, 1:], boxes[:, 0].long(), boxes[:, 0].long())


def assign(module: nn.Module, values: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Loads golden parameters, whose names are `names`' values; shapes may differ by trailing 1s."""
    state = module.state_dict()
    for ours, theirs in names.items():
        state[ours] = torch.from_numpy(values[theirs].copy()).reshape(state[ours].shape)
    module.load_state_dict(state)


def levels_of(arrays: Arrays, dtype: torch.dtype, count: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    students = [tensor(arrays[f"in_student{i}"], dtype, True) for i in range(count)]
    return students, [tensor(arrays[f"in_teacher{i}"], dtype) for i in range(count)]


def check_value(value: Tensor, arrays: Arrays, key: str, precision: str, rtol: float | None = None) -> None:
    dtype, tolerance = PRECISIONS[precision]
    assert value.dtype == dtype
    stored = float(arrays[f"out_{key}_{'f64' if precision == 'float64' else 'f32'}"])
    assert value.item() == pytest.approx(stored, rel=rtol or tolerance, abs=1e-12)


def check_gradient(value: Tensor, inputs: Mapping[str, Tensor], arrays: Arrays) -> None:
    """Gradients of a value for tensors called by their golden names, relative to the largest entry.

    Only in float64, as the stored ones were made: some of them are zero by symmetry, and rounding noise in float32.
    """
    if value.dtype != torch.float64:
        return
    found = torch.autograd.grad(value, list(inputs.values()), retain_graph=True)
    for name, gradient in zip(inputs, found):
        stored = torch.from_numpy(arrays[name].astype(np.float64))
        tolerance = 2e-6 * stored.abs().max().item() + 1e-10
        error = (gradient.reshape(stored.shape) - stored).abs().max().item()
        assert error <= tolerance, f"{name}: {error} > {tolerance}"


def fgd_names(with_align: bool) -> dict[str, str]:
    """Names of our parameters -> names of the official ones."""
    blocks = {
        "mask": "conv_mask_{}",
        "reduce": "channel_add_conv_{}.0",
        "norm": "channel_add_conv_{}.1",
        "expand": "channel_add_conv_{}.3",
    }
    names = {
        f"{who}_relations.0.{ours}.{kind}": f"{theirs.format(who[0])}.{kind}"
        for who in ("student", "teacher")
        for ours, theirs in blocks.items()
        for kind in ("weight", "bias")
    }
    return names | ({f"adapters.0.{kind}": f"align.{kind}" for kind in ("weight", "bias")} if with_align else {})


def fgd(arrays: Arrays, student: Tensor, teacher: Tensor, **parts: float) -> FGD:
    loss = FGD(setup_of([student], [teacher]), temperature=float(arrays["hyp_temp"]), **parts)
    names = fgd_names("param.align.weight" in arrays)
    names = {ours: theirs for ours, theirs in names.items() if parts.get("lambda_", 1.0) or ours.startswith("adapters")}
    assign(loss, arrays, {ours: f"param.{theirs}" for ours, theirs in names.items()})
    return loss.to(student.dtype)


@cases("fgd_*.npz")
@both_precisions
@pytest.mark.parametrize("key", ["fg", "bg", "attention", "relation", "total"])
def test_fgd(case: str, precision: str, key: str) -> None:
    arrays, dtype = load(case), PRECISIONS[precision][0]
    student, teacher = tensor(arrays["in_student"], dtype, True), tensor(arrays["in_teacher"], dtype)
    weights = dict(zip(("fg", "bg", "attention", "relation"), ("alpha", "beta", "gamma", "lambda_")))
    if key == "total":
        parts = {ours: float(arrays[f"hyp_{ours.rstrip('_')}"]) for ours in weights.values()}
    else:
        parts = {ours: float(official == key) for official, ours in weights.items()}
    loss = fgd(arrays, student, teacher, **parts)
    value = loss([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, key, precision)
    gradients = {f"grad_student.{key}": student}
    if key in ("relation", "total"):
        parameters = dict(loss.named_parameters())
        for ours, theirs in fgd_names("param.align.weight" in arrays).items():
            gradients[f"pgrad.{key}.{theirs}"] = parameters[ours]
    check_gradient(value, gradients, arrays)


@cases("fgd_*.npz")
def test_fgd_masks_and_attention(case: str) -> None:
    arrays = load(case)
    student, teacher = tensor(arrays["in_student"], torch.float64), tensor(arrays["in_teacher"], torch.float64)
    context = context_of(arrays)
    masks = scale_masks(
        context.boxes_xyxy, context.box_images, len(student), context.image_hw, tuple(student.shape[2:])
    )
    for name, mask in zip(("fg", "bg"), masks):
        torch.testing.assert_close(mask, torch.from_numpy(arrays[f"out_mask_{name}"]), rtol=1e-6, atol=1e-8)
    loss, temperature = fgd(arrays, student, teacher), float(arrays["hyp_temp"])
    for who, x in (("student", loss.adapters[0](student)), ("teacher", teacher)):
        for kind, function in (("spatial", spatial_attention), ("channel", channel_attention)):
            stored = torch.from_numpy(arrays[f"out_att_{kind}_{who}"]).double()
            torch.testing.assert_close(function(x, temperature), stored, rtol=1e-6, atol=1e-6)


@both_precisions
@pytest.mark.parametrize(
    ("key", "mode"),
    [
        ("l2_element_mean", "mean"),
        ("l2_sum_over_batch", "sum_over_batch"),
        ("l2_normalised", "normalised"),
        ("l2_distance", "distance"),
        ("ofd_partial_l2", "partial"),
    ],
)
def test_l2(key: str, mode: str, precision: str) -> None:
    arrays, dtype = load("feature_l2"), PRECISIONS[precision][0]
    student, teacher = tensor(arrays["in_student"], dtype, True), tensor(arrays["in_teacher"], dtype)
    value = L2(setup_of([student], [teacher]), mode=mode)([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, key, precision)
    check_gradient(value, {f"grad_student.{key}": student}, arrays)


def test_every_l2_mode_is_compared() -> None:
    assert set(MODES) == {"mean", "sum_over_batch", "normalised", "distance", "partial"}


@both_precisions
def test_converter(precision: str) -> None:
    arrays, dtype = load("feature_converter_bn_relu6"), PRECISIONS[precision][0]
    students, teachers = levels_of(arrays, dtype)
    loss = L2(setup_of(students, teachers), adapter="converter")
    names = {
        f"adapters.{i}.{ours}": f"converter.{i}.{theirs}"
        for i in range(3)
        for ours, theirs in (("0.weight", "conv.weight"), ("1.weight", "bn.weight"), ("1.bias", "bn.bias"))
    }
    assign(loss, arrays, {ours: f"param.{theirs}" for ours, theirs in names.items()})
    loss = loss.to(dtype)
    value = torch.stack(list(loss(students, teachers, context_of(arrays)).values())).sum()
    # The two projects scale the same sum: by the batch size and dist / 20, and by 0.1.
    check_value(value * float(arrays["hyp_adlik_f_weight"]), arrays, "adlik_feature", precision)
    syencil = value * len(students[0]) * float(arrays["hyp_dist"]) / 20
    check_value(syencil, arrays, "syencil_feature", precision)
    parameters = dict(loss.named_parameters())
    gradients = {f"pgrad.syencil_feature.{theirs}": parameters[ours] for ours, theirs in names.items()}
    gradients |= {f"grad_student{i}.syencil_feature": student for i, student in enumerate(students)}
    check_gradient(syencil, gradients, arrays)
    for i in range(3):
        for kind in ("mean", "var"):
            running = loss.state_dict()[f"adapters.{i}.1.running_{kind}"].float()
            torch.testing.assert_close(
                running, torch.from_numpy(arrays[f"out_bn_running_{kind}{i}"]), rtol=1e-5, atol=1e-6
            )


def output_head(num_classes: int) -> HeadSpec:
    return HeadSpec("anchor", num_classes, (8, 16, 32), [[[10, 13], [16, 30], [33, 23]]] * 3)


def output_sum(arrays: Arrays, students: list[Tensor], teachers: list[Tensor], **settings: Any) -> dict[str, Tensor]:
    """The parts times the batch size and the project's gain: what the published code returns."""
    head = output_head(students[0].shape[-1] - 5)
    scale = len(students[0]) * float(arrays["hyp_dist"])
    terms = Output(DistillSetup((), head, head), **settings)(students, teachers, context_of(arrays))
    return {name: scale * value for name, value in terms.items()}


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@both_precisions
def test_output(precision: str) -> None:
    arrays, dtype = load("output_bg_suppressed"), PRECISIONS[precision][0]
    students, teachers = levels_of(arrays, dtype)
    unit = output_sum(arrays, students, teachers, box=1, obj=1, cls=1)
    for name, value in unit.items():
        check_value(value, arrays, f"syencil_unit_{name}", precision)
    gains = {name: float(arrays[f"hyp_{name}"]) for name in ("box", "obj", "cls")}
    value = total(output_sum(arrays, students, teachers, **gains))
    check_value(value, arrays, "syencil_total", precision)
    check_value(value, arrays, "sharpiless_l2", precision)
    check_gradient(value, {f"grad_student{i}.syencil_total": s for i, s in enumerate(students)}, arrays)
    check_value(value / len(students[0]) * float(arrays["hyp_adlik_d_weight"]), arrays, "adlik_total", precision)


@both_precisions
def test_output_with_softened_classes(precision: str) -> None:
    arrays, dtype = load("output_bg_suppressed"), PRECISIONS[precision][0]
    students, teachers = levels_of(arrays, dtype)
    gains: dict[str, Any] = {name: float(arrays[f"hyp_{name}"]) for name in ("box", "obj", "cls")}
    gains |= {"class_term": "kl", "temperature": float(arrays["hyp_kl_T"])}
    value = total(output_sum(arrays, students, teachers, **gains))
    check_value(value, arrays, "sharpiless_kl", precision)
    check_gradient(value, {f"grad_student{i}.sharpiless_kl": s for i, s in enumerate(students)}, arrays)


@both_precisions
def test_output_of_one_class(precision: str) -> None:
    arrays, dtype = load("output_bg_suppressed"), PRECISIONS[precision][0]
    students, teachers = levels_of(arrays, dtype)
    terms = output_sum(arrays, [s[..., :6] for s in students], [t[..., :6] for t in teachers])
    assert terms["cls"].item() == 0
    check_value(total(terms), arrays, "syencil_single_class", precision)


def test_output_with_unscaled_objectness() -> None:
    arrays = load("output_bg_suppressed")
    students, teachers = levels_of(arrays, torch.float64)
    unit = output_sum(arrays, students, teachers, box=1, obj=1, cls=1, scale_obj=False)
    assert unit["obj"].item() == pytest.approx(float(arrays["own_paper_unit_obj_unscaled"]), rel=1e-7)
    value = total(output_sum(arrays, students, teachers, scale_obj=False))
    assert value.item() == pytest.approx(float(arrays["own_paper_total_obj_unscaled"]), rel=1e-7)


def pair(arrays: Arrays, precision: str, suffix: str = "") -> tuple[Tensor, Tensor]:
    """Student, which takes a gradient, and teacher."""
    dtype = PRECISIONS[precision][0]
    return tensor(arrays[f"in_student{suffix}"], dtype, True), tensor(arrays[f"in_teacher{suffix}"], dtype)


def check_stored(value: Tensor, stored: np.ndarray) -> None:
    rtol = 1e-5 if value.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(value.double(), torch.from_numpy(stored).double(), rtol=rtol, atol=1e-6)


@both_precisions
@pytest.mark.parametrize(("key", "form"), [("authors_code", "code"), ("paper_equation", "paper")])
def test_attention_transfer(key: str, form: str, precision: str) -> None:
    arrays = load("at")
    student, teacher = pair(arrays, precision)
    loss = AttentionTransfer(setup_of([student], [teacher]), form=form, beta=1.0)
    value = loss([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, key, precision)
    check_gradient(value, {f"grad_student.{key}": student}, arrays)
    check_stored(attention(student), arrays["out_attention_student"])
    check_stored(attention(teacher), arrays["out_attention_teacher"])


@both_precisions
@pytest.mark.parametrize("case", ["cwd_tau1", "cwd_tau4", "cwd_large_values"])
def test_cwd(case: str, precision: str) -> None:
    arrays = load(case)
    student, teacher = pair(arrays, precision)
    temperature = float(arrays["hyp_tau"])
    loss = CWD(setup_of([student], [teacher]), temperature=temperature, normalise=False)
    value = loss([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, "loss", precision)
    check_gradient(value, {"grad_student.loss": student}, arrays)
    if case != "cwd_large_values":
        check_value(value, arrays, "authors_channel_kl", precision)


@both_precisions
def test_cwd_of_standardised_maps(precision: str) -> None:
    arrays = load("cwd_align_affinefree_bn")
    student, teacher = pair(arrays, precision)
    loss = CWD(setup_of([student], [teacher]))
    assign(loss, arrays, {"adapters.0.weight": "param.align.weight"})
    loss = loss.to(student.dtype)
    value = loss([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, "loss", precision)
    parameters = dict(loss.named_parameters())
    gradients = {"grad_student.loss": student, "pgrad.loss.align.weight": parameters["adapters.0.weight"]}
    check_gradient(value, gradients, arrays)
    check_stored(batch_standardise(loss.adapters[0](student)), arrays["out_student_normalised"])
    check_stored(batch_standardise(teacher), arrays["out_teacher_normalised"])


@cases("mgd_*.npz")
@both_precisions
def test_mgd(case: str, precision: str) -> None:
    arrays, dtype = load(case), PRECISIONS[precision][0]
    student, teacher = pair(arrays, precision)
    _, make_mask = MASKS["channel" if case == "mgd_channel_mask" else "spatial"]
    mask = make_mask(tensor(arrays["in_uniform"], dtype), float(arrays["hyp_lambda"]))
    assert torch.equal(mask, tensor(arrays["in_mask"], dtype))
    loss = MGD(setup_of([student], [teacher]))
    names = {f"generators.0.{i}.{kind}": f"generation.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    if "param.align.weight" in arrays:
        names |= {f"adapters.0.{kind}": f"align.{kind}" for kind in ("weight", "bias")}
    assign(loss, arrays, {ours: f"param.{theirs}" for ours, theirs in names.items()})
    loss = loss.to(dtype)
    adapted = loss.adapters[0](student)
    value = generation_error(adapted, teacher, mask, loss.generators[0])
    check_value(value, arrays, "unweighted", precision)
    check_value(value * float(arrays["hyp_alpha"]), arrays, "total", precision)
    parameters = dict(loss.named_parameters())
    gradients = {f"pgrad.unweighted.{theirs}": parameters[ours] for ours, theirs in names.items()}
    check_gradient(value, gradients | {"grad_student.unweighted": student}, arrays)
    check_stored(loss.generators[0](adapted * mask), arrays["out_generated"])


@both_precisions
@pytest.mark.parametrize("case", ["pkd_same_size", "pkd_dead_channels"])
def test_pkd(case: str, precision: str) -> None:
    arrays = load(case)
    student, teacher = pair(arrays, precision)
    value = PKD(setup_of([student], [teacher]))([student], [teacher], context_of(arrays))["P3"]
    value = value * float(arrays["hyp_loss_weight"])
    check_value(value, arrays, "loss", precision)
    check_gradient(value, {"grad_student.loss": student}, arrays)
    check_stored(pearson_standardise(student), arrays["out_student_normalised"])


@both_precisions
def test_pkd_of_three_levels(precision: str) -> None:
    arrays = load("pkd_three_levels")
    students, teachers = levels_of(arrays, PRECISIONS[precision][0])
    value = total(PKD(setup_of(students, teachers))(students, teachers, context_of(arrays)))
    value = value * float(arrays["hyp_loss_weight"])
    check_value(value, arrays, "loss", precision)
    check_gradient(value, {f"grad_student{i}.loss": s for i, s in enumerate(students)}, arrays)


@both_precisions
def test_pkd_of_different_sizes(precision: str) -> None:
    arrays = load("pkd_different_size")
    student, teacher = pair(arrays, precision)
    value = PKD(setup_of([student], [teacher]), resize=True)([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, "resize_student", precision)
    check_gradient(value, {"grad_student.resize_student": student}, arrays)
    value = pearson_loss(student, resize(teacher, student))
    check_value(value, arrays, "resize_teacher", precision)
    check_gradient(value, {"grad_student.resize_teacher": student}, arrays)


def fbkd_names() -> dict[str, str]:
    names = {
        f"{ours}.{kind}": f"student.{theirs}.{kind}"
        for ours, theirs in (
            ("adapt", "adaptation_layers"),
            ("adapt_channels", "channel_wise_adaptation"),
            ("adapt_pixels", "spatial_wise_adaptation"),
            ("adapt_relation", "non_local_adaptation"),
        )
        for kind in ("weight", "bias")
    }
    for who in ("student", "teacher"):
        block = f"{who}.{who}_non_local"
        for ours, theirs in (("query", "theta.conv"), ("key", "phi.0.0.conv"), ("value", "g.0.0.conv")):
            names |= {f"{who}_relation.{ours}.{kind}": f"{block}.{theirs}.{kind}" for kind in ("weight", "bias")}
        names[f"{who}_relation.expand.weight"] = f"{block}.conv_out.conv.weight"
        names |= {f"{who}_relation.norm.{kind}": f"{block}.conv_out.bn.{kind}" for kind in ("weight", "bias")}
    return names


@both_precisions
@pytest.mark.parametrize("key", ["unit_mask_l2", "unit_channel", "unit_spatial", "unit_nonlocal", "total"])
def test_fbkd(key: str, precision: str) -> None:
    arrays = load("fbkd")
    student, teacher = pair(arrays, precision)
    official = ("mask_l2", "channel", "spatial", "nonlocal")
    if key == "total":
        weights = [float(arrays[f"hyp_{name}_weight"]) for name in official]
    else:
        weights = [float(key == f"unit_{name}") for name in official]
    parts = dict(zip(("masked", "channel", "spatial", "relation"), weights))
    loss = FBKD(setup_of([student], [teacher]), temperature=float(arrays["hyp_T"]), **parts)
    assign(loss.blocks[0], arrays, {ours: f"param.{theirs}" for ours, theirs in fbkd_names().items()})
    loss = loss.to(student.dtype)
    value = loss([student], [teacher], context_of(arrays))["P3"]
    check_value(value, arrays, key, precision)
    if f"grad_student.{key}" in arrays:
        check_gradient(value, {f"grad_student.{key}": student}, arrays)


@both_precisions
@pytest.mark.parametrize("rank", ["2d", "4d"])
@pytest.mark.parametrize("temperature", [1, 4])
def test_softened_kl(temperature: int, rank: str, precision: str) -> None:
    arrays = load("kl_tau")
    student, teacher = pair(arrays, precision, rank)
    terms = softened_kl(student, teacher, temperature, dim=1)
    key = f"{rank}_tau{temperature}"
    check_value(terms.sum(), arrays, f"{key}_sum", precision)
    check_value(terms.mean(), arrays, f"{key}_mean", precision)
    per_image = terms.sum() / len(student)
    check_value(per_image, arrays, f"{key}_batchmean", precision)
    check_gradient(per_image, {f"grad_student.{key}_batchmean": student}, arrays)


@both_precisions
def test_soft_labels_over_classes(precision: str) -> None:
    arrays = load("hinton_softmax")
    student, teacher = pair(arrays, precision)
    temperature, alpha = float(arrays["hyp_T"]), float(arrays["hyp_alpha"])
    terms = softened_kl(student, teacher, temperature)
    value = terms.sum(-1).mean()
    check_value(value, arrays, "kd_only", precision)
    check_gradient(value, {"grad_student.kd_only": student}, arrays)
    hard = F.cross_entropy(student, torch.from_numpy(arrays["in_labels"].copy()))
    for key in ("kd_plus_ce", "torchdistill_kd_plus_ce"):
        check_value(alpha * value + (1 - alpha) * hard, arrays, key, precision)
    if precision == "float64":
        assert terms.mean().item() == pytest.approx(float(arrays["own_takd_elementmean_kd"]), rel=1e-7)


def test_soft_labels_of_independent_classes() -> None:
    arrays = load("own_sigmoid_soft_labels")
    student, teacher = pair(arrays, "float64")
    weights = tensor(arrays["in_weight"], torch.float64)
    terms = softened_binary_kl(student, teacher, float(arrays["hyp_T"]))
    assert terms.mean().item() == pytest.approx(float(arrays["own_kl_mean"]), rel=1e-7)
    by_row = terms.sum(-1)
    assert by_row.mean().item() == pytest.approx(float(arrays["own_kl_sum_over_classes_mean_over_rows"]), rel=1e-7)
    value = (terms * weights[:, None]).mean()
    assert value.item() == pytest.approx(float(arrays["own_kl_weighted_mean"]), rel=1e-7)
    check_gradient(value, {"own_grad_student_kl_weighted_mean": student}, arrays)


@both_precisions
@pytest.mark.parametrize("case", ["ld_16_bins", "ld_17_bins"])
def test_ld(case: str, precision: str) -> None:
    arrays, dtype = load(case), PRECISIONS[precision][0]
    temperature, weight = float(arrays["hyp_T_ld"]), float(arrays["hyp_weight_ld"])
    student, teacher = pair(arrays, precision)
    rows = side_divergence(student, teacher, temperature)
    check_stored(rows, arrays["out_ld_per_row"])
    check_value(rows.mean(), arrays, "ld_plain_mean", precision)
    value = weight * (rows * tensor(arrays["in_weight"], dtype)).sum() / float(arrays["hyp_avg_factor_ld"])
    check_value(value, arrays, "ld_main", precision)
    check_gradient(value, {"grad_student.ld_main": student}, arrays)
    student = tensor(arrays["in_vlr_student"], dtype, True)
    rows = side_divergence(student, tensor(arrays["in_vlr_teacher"], dtype), temperature)
    value = weight * (rows * tensor(arrays["in_vlr_weight"], dtype)).sum() / float(arrays["hyp_avg_factor_vlr"])
    check_value(value, arrays, "ld_vlr", precision)
    check_gradient(value, {"grad_vlr_student.ld_vlr": student}, arrays)
    student = tensor(arrays["in_cls_student"], dtype, True)
    terms = softened_kl(student, tensor(arrays["in_cls_teacher"], dtype), float(arrays["hyp_T_cls"]))
    value = float(arrays["hyp_weight_cls"]) * terms.mean()
    check_value(value, arrays, "kd_cls", precision)
    check_gradient(value, {"grad_cls_student.kd_cls": student}, arrays)


@both_precisions
def test_softmax_over_the_whole_output(precision: str) -> None:
    """One project's loss, which makes no sense as a method; it checks the divergence on a third kind of input."""
    arrays = load("output_softmax_all_channels")
    students, teachers = levels_of(arrays, PRECISIONS[precision][0])
    student, teacher = (torch.cat([x.flatten(1, 3) for x in maps], 1) for maps in (students, teachers))
    terms = softened_kl(student, teacher, float(arrays["hyp_T"]))
    value = float(arrays["hyp_lambda"]) * terms.sum() / len(student)
    check_value(value, arrays, "loss", precision)
    check_gradient(value, {f"grad_student{i}.loss": s for i, s in enumerate(students)}, arrays)


@both_precisions
def test_self_distillation(precision: str) -> None:
    arrays, dtype = load("yolov6_self_distillation"), PRECISIONS[precision][0]
    temperature = float(arrays["hyp_T"])

    def both(kind: str) -> tuple[Tensor, Tensor]:
        return tensor(arrays[f"in_{kind}_student"], dtype, True), tensor(arrays[f"in_{kind}_teacher"], dtype)

    student, teacher = both("cls")
    value = class_divergence(student, teacher, temperature).sum()
    # Nearly flat distributions lose four digits in float32 (see the golden values' description).
    check_value(value, arrays, "cls", precision, rtol=5e-4 if precision == "float32" else None)
    check_gradient(value, {"grad_cls_student.cls": student}, arrays)
    student, teacher = both("dfl")
    value = softened_kl(student, teacher, temperature).sum(-1).mean()
    check_value(value, arrays, "dfl", precision)
    check_gradient(value, {"grad_dfl_student.dfl": student}, arrays)
    students = [tensor(arrays[f"in_feat_student{i}"], dtype, True) for i in range(3)]
    levels = [channel_wise_kl(s, tensor(arrays[f"in_feat_teacher{i}"], dtype), 1.0) for i, s in enumerate(students)]
    value = torch.stack(levels).sum()
    check_value(value, arrays, "channelwise", precision)
    check_gradient(value, {f"grad_feat_student{i}.channelwise": s for i, s in enumerate(students)}, arrays)
