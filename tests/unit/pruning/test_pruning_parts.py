"""Importance, selection, sizes, targets and mistakes of pruning, by hand on tiny networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.yolo import Model
from pruning import IMPORTANCES, PruneError, measure_latency, prune
from pruning.batchnorm import reestimate_batchnorm
from pruning.graph import Group, trace_groups
from pruning.importance import BatchNormScale, FilterNorm, L1Norm, Taylor, group_scores
from pruning.pruner import run_for_outputs
from pruning.selection import fewest_steps, possible_steps, widths_after
from pruning.sensitivity import sensitivity
from pruning.size import SizeModel
from pruning.sparsity import SparsityLoss, batchnorm_scales
from tests.unit.models.architectures import tiny_yolov5, tiny_yolov7, tiny_yolov8

IMAGE = torch.zeros(1, 3, 8, 8)


class Chain(nn.Module):
    """conv 3 -> 4, BatchNorm, ReLU, conv 4 -> 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.b = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.bn(self.a(x))))


def only_group(model: nn.Module) -> Group:
    (group,) = [group for group in trace_groups(model, IMAGE, run_for_outputs) if not group.reason]
    return group


class Wired(nn.Module):
    """Two convolutions of 8 channels with BatchNorm, joined as `wiring` says, and a last one."""

    def __init__(self, wiring: Any, width: int = 8, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)) for _ in range(2))
        self.wiring, self.last = wiring, last or nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wiring(self.a(x), self.b(x)))


def space_to_depth(x: Tensor) -> Tensor:
    return torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)


def places(group: Group) -> dict[tuple[str, str], list[list[int]]]:
    return {(port.name, port.side): at.tolist() for port, at in group.segments[0].places.items()}


# ------------------------------------------------------------------------------------------------ what belongs together


def test_a_concatenation_keeps_its_parts_apart() -> None:
    groups = trace_groups(Wired(lambda a, b: torch.cat((a, b), 1), 16), IMAGE, run_for_outputs)
    free = {group.name: group for group in groups if not group.reason}
    assert [group.size for group in free.values()] == [8, 8]
    starts = sorted(min(min(at) for at in places(group)["last", "in"]) for group in free.values())
    assert starts == [0, 8]


def test_a_sum_ties_channels_one_by_one() -> None:
    (group,) = [g for g in trace_groups(Wired(torch.add), IMAGE, run_for_outputs) if not g.reason]
    found = places(group)
    assert found["a.0", "out"] == found["b.0", "out"] == found["last", "in"]


def test_the_halves_of_a_split_shrink_alike() -> None:
    def wiring(a: Tensor, b: Tensor) -> Tensor:
        first, second = a.chunk(2, 1)
        return torch.cat((second, b, first), 1)

    groups = [g for g in trace_groups(Wired(wiring, 16), IMAGE, run_for_outputs) if not g.reason]
    (halves,) = [group for group in groups if len(group.segments) == 2]
    assert halves.size == 4
    model = Wired(wiring, 16)
    prune(model, 0.2, image=IMAGE, round_to=1, importance="random")
    assert model.a[0].out_channels % 2 == 0 and model(torch.rand(1, 3, 8, 8)).shape[1] == 1


def test_folding_halves_ties_them() -> None:
    def wiring(a: Tensor, b: Tensor) -> Tensor:
        first, second = a.chunk(2, 1)
        return torch.cat((first + second, b), 1)

    groups = [g for g in trace_groups(Wired(wiring, 12), IMAGE, run_for_outputs) if not g.reason]
    assert places(groups[0])["a.0", "out"] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_pixels_that_become_channels_go_together() -> None:
    groups = trace_groups(Wired(lambda a, b: space_to_depth(a + b), 32), IMAGE, run_for_outputs)
    (group,) = [group for group in groups if not group.reason]
    assert places(group)["last", "in"][1] == [1, 9, 17, 25]


def test_a_transposed_convolution_is_pruned_on_both_sides() -> None:
    model = Wired(torch.add, last=nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6), nn.Conv2d(6, 1, 1)))
    full = copy.deepcopy(model)
    result = prune(model, 0.4, image=IMAGE, round_to=2, importance="random", min_keep=0.1)
    up = model.last[0]
    assert up.weight.shape[:2] == (up.in_channels, up.out_channels) and up.in_channels < 8 and up.out_channels < 6
    with torch.no_grad():
        for (name, side), indices in result.removed.items():
            if isinstance(full.get_submodule(name), nn.ConvTranspose2d) and side == "out":
                full.get_submodule(name).weight[:, indices] = 0
                full.get_submodule(name).bias[indices] = 0
            elif side in ("out", "both"):
                for parameter in full.get_submodule(name).parameters():
                    parameter[indices] = 0
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model.eval()(images), full.eval()(images), rtol=1e-5, atol=1e-6)


def test_what_is_not_followed_stays() -> None:
    grouped = Wired(torch.add, last=nn.Sequential(nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 1, 1)))
    reasons = {group.reason for group in trace_groups(grouped, IMAGE, run_for_outputs)}
    assert reasons == {"a grouped convolution", "the network's output"}
    viewed = Wired(lambda a, b: (a + b).view(1, 4, 16, 8), 4)
    assert {group.reason for group in trace_groups(viewed, IMAGE, run_for_outputs)} == {
        "an operation not followed",
        "the network's output",
    }


class Functional(nn.Module):
    """A convolution of its own making, whose weight is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(8, 8, 1, 1))
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.conv2d(x, self.kernel))


@pytest.mark.parametrize(
    "wiring",
    [
        lambda a, b: (a + b).softmax(1),
        lambda a, b: a * (a + b).sum(1, keepdim=True),
        lambda a, b: a + b.flip(1),
        lambda a, b: a.transpose(1, 2).contiguous().transpose(1, 2) + b,
        lambda a, b: a[:, :4].repeat(1, 2, 1, 1) + b,
    ],
)
def test_operations_that_mix_channels_are_not_pruned_through(wiring: Any) -> None:
    model = Wired(wiring)
    with pytest.raises(PruneError, match="cannot be reached"):
        prune(model, 0.1, image=IMAGE, round_to=1, min_keep=0.1)
    assert model(IMAGE).shape[1] == 1


def test_a_convolution_without_a_module_is_not_pruned_through() -> None:
    reasons = {group.reason for group in trace_groups(Wired(torch.add, last=Functional()), IMAGE, run_for_outputs)}
    assert reasons == {"an operation not followed", "the network's output"}


def test_stacked_maps_are_summed_channel_by_channel() -> None:
    groups = trace_groups(Wired(lambda a, b: torch.stack((a, b)).sum(0)), IMAGE, run_for_outputs)
    (group,) = [group for group in groups if not group.reason]
    found = places(group)
    assert found["a.0", "out"] == found["b.0", "out"] == found["last", "in"]


def test_a_layer_used_twice_is_refused() -> None:
    model = Chain()
    model.act = nn.Sequential(model.bn)
    with pytest.raises(PruneError, match="a BatchNorm2d of this network is used more than once"):
        prune(model, 0.3, image=IMAGE)


def test_channels_without_batchnorm_stay() -> None:
    model = Wired(torch.add, last=nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)))
    result = prune(model, 0.1, image=IMAGE, round_to=1)
    assert {layer.name: layer.kept_for for layer in result.layers}["last.0"] == "no BatchNorm behind it"


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = Model(tiny_yolov5()).train()
    model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trace_groups(model, torch.rand(1, 3, 64, 64), run_for_outputs)
    assert model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_frozen_weights_are_pruned_and_stay_frozen() -> None:
    model = Model(tiny_yolov5()).requires_grad_(False)
    result = prune(model, 0.3, image=torch.zeros(1, 3, 64, 64), round_to=2)
    assert result.after.params < result.before.params
    assert not any(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------------------------------------ importance


def test_batchnorm_scale() -> None:
    model = Chain()
    model.bn.weight.data = torch.tensor([0.5, -2.0, 0.1, 1.0])
    assert BatchNormScale(model)(only_group(model).segments[0]).tolist() == pytest.approx([0.5, 2.0, 0.1, 1.0])


def test_filter_norms_are_of_filters_as_they_act() -> None:
    model = Chain()
    model.a.weight.data = torch.tensor([[3.0, 4, 0], [1, 1, 1], [0, 0, 2], [0, 0, 0]]).view(4, 3, 1, 1)
    model.bn.weight.data = torch.tensor([1.0, -2, 1, 1])
    model.bn.running_var = torch.tensor([1.0, 1, 4, 1]) - model.bn.eps
    segment = only_group(model).segments[0]
    # times |scale| / deviation: 1, 2, 1/2, 1
    assert FilterNorm(model)(segment).tolist() == pytest.approx([5, 2 * 3**0.5, 1, 0])
    assert L1Norm(model)(segment).tolist() == pytest.approx([7, 6, 1, 0])


def test_taylor_predicts_what_a_closed_gate_costs() -> None:
    torch.manual_seed(0)
    model = Chain().double().eval()
    batch = torch.rand(5, 3, 4, 4, dtype=torch.float64)

    def loss(network: nn.Module, images: Tensor) -> Tensor:
        return network(images).square().mean()

    groups = [g for g in trace_groups(model, IMAGE.double(), run_for_outputs) if not g.reason]
    scores = Taylor(model, [batch], loss)(groups[0].segments[0])
    step = 1e-6
    for channel in range(4):
        nudged = copy.deepcopy(model)
        nudged.bn.weight.data[channel] *= 1 - step
        nudged.bn.bias.data[channel] *= 1 - step
        slope = (loss(nudged, batch) - loss(model, batch)).item() / step
        assert scores[channel].item() == pytest.approx(slope**2, rel=1e-3)


def test_taylor_leaves_no_trace_in_the_model() -> None:
    model = Chain()
    model.a.weight.requires_grad_(False)
    Taylor(model, [torch.rand(2, 3, 4, 4)], lambda network, images: network(images).sum())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_random_importance_follows_its_seed() -> None:
    widths = []
    for seed in (0, 0, 1):
        model = Model(tiny_yolov5())
        result = prune(model, 0.3, image=torch.zeros(1, 3, 64, 64), round_to=2, importance="random", seed=seed)
        widths.append({place: at.tolist() for place, at in result.removed.items()})
    assert widths[0] == widths[1] != widths[2]


def test_normalisation_makes_groups_comparable() -> None:
    model = Chain()
    model.bn.weight.data = torch.tensor([1.0, 2, 3, 6])
    group = only_group(model)
    for how, expected in (("mean", [1 / 3, 2 / 3, 1, 2]), ("max", [1 / 6, 1 / 3, 0.5, 1]), ("none", [1, 2, 3, 6])):
        ((values,),) = group_scores([group], BatchNormScale(model), how)
        assert values.tolist() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ selection


def groups_of(*sizes: int) -> list[Group]:
    groups = []
    for size in sizes:
        model = nn.Sequential(nn.Conv2d(3, size, 1), nn.BatchNorm2d(size), nn.Conv2d(size, 1, 1))
        groups.append(only_group(model))
    return groups


def test_steps_go_down_in_multiples_to_the_floor() -> None:
    (group,) = groups_of(20)
    scores = [[torch.arange(20.0)]]
    steps = possible_steps([group], scores, scope="global", round_to=8, min_keep=0.3)  # 0.3 of 20 is 6, so 8
    assert [(step.kept, step.score) for step in steps] == [(16, 1.5), (8, 7.5)]  # means of 0..3 and of 4..11


def test_a_layer_is_never_left_without_channels() -> None:
    (group,) = groups_of(16)
    steps = possible_steps([group], [[torch.ones(16)]], scope="global", round_to=8, min_keep=0.0)
    assert [step.kept for step in steps] == [8]


def test_the_least_important_steps_come_first_across_groups() -> None:
    groups = groups_of(8, 8)
    scores = [[torch.full((8,), 2.0)], [torch.cat((torch.full((4,), 1.0), torch.full((4,), 3.0)))]]
    steps = possible_steps(groups, scores, scope="global", round_to=4, min_keep=0.1)
    assert [(step.group, step.kept) for step in steps] == [(1, 4), (0, 4)]
    assert widths_after(steps, 1) == {1: 4}


def test_layer_scope_takes_the_same_share_of_each() -> None:
    groups = groups_of(16, 8)
    scores = [[torch.rand(16)], [torch.rand(8)]]
    steps = possible_steps(groups, scores, scope="layer", round_to=4, min_keep=0.1)
    assert [(step.group, step.kept) for step in steps] == [(0, 12), (0, 8), (1, 4), (0, 4)]


def test_as_few_steps_as_reach_the_target() -> None:
    (group,) = groups_of(10)
    steps = possible_steps([group], [[torch.arange(10.0)]], scope="global", round_to=1, min_keep=0.1)

    def gone(widths: dict[int, int]) -> float:
        return 1 - widths.get(0, 10) / 10

    assert fewest_steps(steps, gone, 0.25, "channels") == 3
    with pytest.raises(PruneError, match="cannot be reached: at most 0.900"):
        fewest_steps(steps, gone, 0.95, "channels")


# ------------------------------------------------------------------------------------------------ size and targets


def test_sizes_by_hand() -> None:
    size = SizeModel(Chain(), IMAGE, run_for_outputs).count({})
    assert (size.channels, size.params) == (6, 12 + 8 + 8 + 2)
    assert size.gflops == pytest.approx(2 * (12 + 8) * 64 * 1e-9)
    smaller = SizeModel(Chain(), IMAGE, run_for_outputs).count({("a", "out"): 1, ("bn", "both"): 1, ("b", "in"): 1})
    assert (smaller.channels, smaller.params) == (5, 9 + 6 + 6 + 2)


@pytest.mark.parametrize("by", ["gflops", "params", "channels"])
def test_each_target_is_reached_and_hardly_exceeded(by: str) -> None:
    model = Model(tiny_yolov5())
    result = prune(model, 0.3, by=by, image=torch.zeros(1, 3, 64, 64), round_to=1, min_keep=0.05)
    assert 0.3 <= result.share < 0.34
    assert result.share == pytest.approx(1 - getattr(result.after, by) / getattr(result.before, by))


def test_a_target_of_latency_is_measured() -> None:
    model = Wired(torch.add)
    for layer in (model.a, model.b):
        layer[0], layer[1] = nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128)
    model.last = nn.Conv2d(128, 64, 3)
    image = torch.zeros(1, 3, 24, 24)
    full = copy.deepcopy(model).eval()
    prune(model, 0.3, by="latency", image=image, min_keep=0.05)
    slow, fast = measure_latency([full, model.eval()], image)
    assert fast < slow


def test_widths_are_multiples() -> None:
    model = Model(tiny_yolov8())
    prune(model, 0.2, image=torch.zeros(1, 3, 64, 64), round_to=4)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith(("model.5", "model.0")):
            assert module.in_channels % 4 == module.out_channels % 4 == 0


def test_outputs_of_the_head_stay() -> None:
    for cfg in (tiny_yolov5(), tiny_yolov7(), tiny_yolov8()):
        model = Model(cfg)
        before = [raw.shape for raw in run_for_outputs(model, torch.zeros(1, 3, 64, 64))]
        result = prune(model, 0.5, image=torch.zeros(1, 3, 64, 64), round_to=2, min_keep=0.05)
        assert [raw.shape for raw in run_for_outputs(model, torch.zeros(1, 3, 64, 64))] == before
        assert any(layer.kept_for for layer in result.layers)


def test_protected_classes_keep_their_outputs() -> None:
    model = Model(tiny_yolov5())
    result = prune(model, 0.2, image=torch.zeros(1, 3, 64, 64), round_to=2, protect=["SPPF"])
    for layer in result.layers:
        if layer.name.startswith("model.4."):
            assert layer.after[1] == layer.before[1] and layer.kept_for == "SPPF is protected"


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"target": 0.0}, "target is 0"),
        ({"target": 1.5}, "target is 1.5"),
        ({"target": 0.99}, "cannot be reached: at most 0"),
        ({"by": "speed"}, "unknown target of 'speed'; known: gflops"),
        ({"importance": "l3"}, "unknown importance 'l3'"),
        ({"importance": "taylor"}, "taylor importance needs data"),
        ({"scope": "local"}, "unknown scope"),
        ({"normalize": "sum"}, "unknown normalize"),
        ({"min_keep": 1.0}, "min_keep is 1"),
        ({"round_to": 0}, "round_to is 0"),
        ({"protect": ["SPFF"]}, "no layer of this model is a 'SPFF'; did you mean 'SPPF'"),
        ({"protect": ["Foo"]}, "no layer of this model is a 'Foo'; this model has BatchNorm2d, Bottleneck"),
        ({"protect": ["x\n" * 10_000]}, "no layer of this model is a"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str) -> None:
    model = Model(tiny_yolov5())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruneError, match=message) as caught:
        prune(model, **{"image": torch.zeros(1, 3, 64, 64), "round_to": 2, **settings})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_folded_model_is_refused() -> None:
    with pytest.raises(PruneError, match="has no BatchNorm"):
        prune(Model(tiny_yolov5()).eval().fuse(), 0.3)


def test_an_exported_model_is_refused() -> None:
    traced = torch.jit.trace(Chain().eval(), IMAGE)
    with pytest.raises(PruneError, match="exported"):
        prune(traced, 0.3)


def test_scales_that_are_all_small_are_refused() -> None:
    model = Model(tiny_yolov5())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1e-5)
    with pytest.raises(PruneError, match="sparsity training was too strong"):
        prune(model, 0.3, importance="bn")


def test_every_importance_is_listed() -> None:
    assert set(IMPORTANCES) == {"bn", "l1", "l2", "taylor", "random"}


# ------------------------------------------------------------------------------------------------ around the cut


def test_statistics_are_those_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    reestimate_batchnorm(model, [torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), 4.0)])
    assert model[0].running_mean.item() == pytest.approx(2.5) and model[0].running_var.item() == pytest.approx(0)
    assert not model.training and model[0].momentum == 0.1
    with pytest.raises(PruneError, match="no images"):
        reestimate_batchnorm(model, [])


def test_the_sparsity_loss_by_hand() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(1))
    model[0].weight.data = torch.tensor([1.0, -3.0])
    model[1].weight.data = torch.tensor([2.0])
    loss = SparsityLoss(model, 0.01, "decay")
    assert not list(loss.parameters())
    loss.start_epoch(0, 11)
    value, items = loss(torch.zeros(4, 3, 8, 8), None, [], torch.zeros(0, 6))
    assert value.item() == pytest.approx(0.01 * 6 * 4)
    assert items["sparsity/l1"].item() == pytest.approx(0.06) and items["scales/mean"].item() == pytest.approx(2)
    value.backward()
    assert model[0].weight.grad.tolist() == pytest.approx([0.04, -0.04])
    assert (
        "3 BatchNorm scales"
        in loss.preflight(torch.zeros(4, 3, 8, 8), None, [], torch.zeros(0, 6), torch.tensor(1.0)).table
    )
    assert loss.epoch_row() == {"schedule/sparsity": 1.0}


@pytest.mark.parametrize(
    "schedule, factors", [("constant", [1, 1, 1]), ("decay", [1, 0.55, 0.1]), ("ramp", [0.1, 0.55, 1])]
)
def test_the_course_of_the_sparsity(schedule: str, factors: list[float]) -> None:
    loss = SparsityLoss(nn.BatchNorm2d(1), 1.0, schedule)
    for epoch, factor in enumerate(factors):
        loss.start_epoch(epoch, 3)
        assert loss.factor == pytest.approx(factor)


def test_mistakes_of_the_sparsity() -> None:
    with pytest.raises(PruneError, match="no BatchNorm"):
        SparsityLoss(nn.Conv2d(1, 1, 1), 1.0)
    with pytest.raises(PruneError, match="strength"):
        SparsityLoss(nn.BatchNorm2d(1), 0.0)
    with pytest.raises(PruneError, match="unknown sparsity schedule"):
        SparsityLoss(nn.BatchNorm2d(1), 1.0, "step")
    assert batchnorm_scales(nn.Sequential(nn.BatchNorm2d(2))).tolist() == [1, 1]


def test_sensitivity_cuts_one_group_at_a_time() -> None:
    model = Chain()
    model.bn.weight.data = torch.tensor([1.0, 2, 3, 4])
    groups = trace_groups(model, IMAGE, run_for_outputs)

    def scales_left(network: nn.Module) -> float:
        return float(network.get_submodule("bn").weight.detach().sum())

    rows = list(sensitivity(model, groups, BatchNormScale(model), scales_left, (0.25, 0.5)))
    assert [(row.channels, row.share, row.value) for row in rows] == [(4, 0.25, 9), (4, 0.5, 7)]
    assert model.a.out_channels == 4
