from __future__ import annotations

import pytest

from engine.config.hyp import Hyp
from engine.training.schedule import LearningSchedule, lr_factor, resolve_auto
from tests.golden import load_json


def test_factor_of_the_published_schedules() -> None:
    golden = load_json("postprocess/schedules.json")
    for case in golden["yolov5_7.0"]["lr_factor"]:
        epochs, lrf = int(case.split("_")[0][1:]), float(case.split("lrf")[1])
        values = golden["yolov5_7.0"]["lr_factor"][case]
        for epoch, cosine, linear in zip(values["epoch"], values["cosine"], values["linear"]):
            assert lr_factor(epoch, epochs, lrf) == pytest.approx(cosine, rel=1e-12)
            assert lr_factor(epoch, epochs, lrf, linear=True) == pytest.approx(linear, rel=1e-12)


def test_a_single_epoch_has_no_division_by_zero() -> None:
    assert lr_factor(0, 1, 0.1, linear=True) == 1.0


@pytest.mark.parametrize(
    ("epochs", "batches", "batch_size", "nbs", "ramp"),
    [
        (90, 13, 16, 16, 234.0),  # 205 images: 1170 steps, where 64 would make 1170 // 4 = 292
        (100, 7330, 16, 64, 2000.0),  # 183,250 steps
        (400, 100, 16, 64, 2000.0),  # 40,000 // 4 = 10,000 steps are enough
        (400, 99, 16, 16, 2000.0),  # 9,900 are not: 39,600 steps, a fifth of which is more than 2000
        (10, 50, 4, 16, 25.0),  # at least 16: a step every 4 batches, 500 // 4 = 125
        (10, 50, 128, 128, 100.0),  # a batch is a step
        (1, 2, 16, 16, 1.0),
    ],
)
def test_few_images_get_many_steps(epochs: int, batches: int, batch_size: int, nbs: int, ramp: float) -> None:
    hyp, line = resolve_auto(Hyp(nbs="auto", ema_ramp="auto"), epochs, batches, batch_size)
    assert (hyp.nbs, hyp.ema_ramp) == (nbs, ramp)
    assert f"nbs is {nbs}, ema_ramp is {ramp:g}" in line
    LearningSchedule(hyp, epochs, batches, batch_size)
    assert resolve_auto(hyp, 1, 1, 1) == (hyp, ""), "numbers stay, as in a run that is resumed"
    assert resolve_auto(Hyp(nbs=64, ema_ramp="auto"), 90, 13, 16)[0].ema_ramp == pytest.approx(58.4)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_warm_up_equals_the_reference(case: int) -> None:
    golden = load_json("postprocess/schedules.json")["ultralytics_8.2.103"]["warmup"][case]
    args = golden["args"]
    names = ("lr0", "lrf", "momentum", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "nbs")
    hyp = Hyp(**{k: args[k] for k in names})
    schedule = LearningSchedule(
        hyp, args["epochs"], args["batches_per_epoch"], args["batch_size"], linear=not args["cosine"]
    )
    if golden["warmup_iters"] > 0:
        assert schedule.warmup_iterations == golden["warmup_iters"]
    for epoch, _, iteration, bias, weight, norm, momentum, accumulate in golden["rows"]:
        plan = schedule.at(epoch, iteration)
        assert (plan.bias_lr, plan.lr) == pytest.approx((bias, weight), rel=1e-9)
        assert plan.lr == pytest.approx(norm)
        assert plan.momentum == pytest.approx(momentum)
        assert plan.accumulate == round(accumulate)


def test_weight_decay_follows_the_accumulated_batch() -> None:
    for case in load_json("postprocess/schedules.json")["yolov5_7.0"]["weight_decay"]:
        schedule = LearningSchedule(Hyp(), 10, 100, case["batch"])
        assert schedule.accumulate == case["accumulate"]
        assert schedule.weight_decay == pytest.approx(case["weight_decay"])


def test_warm_up_takes_at_most_a_third_of_a_short_training() -> None:
    # 10 epochs of 6 batches: 3 epochs would be 18 iterations, the least length 100 would swallow all 60
    assert LearningSchedule(Hyp(), 10, 6, 16).warmup_iterations == 20
    assert LearningSchedule(Hyp(), 100, 13, 16).warmup_iterations == 100
    assert LearningSchedule(Hyp(warmup_epochs=0), 100, 13, 16).warmup_iterations == 0
