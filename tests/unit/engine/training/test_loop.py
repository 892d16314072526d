from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.training.extra_loss import ModuleLoss
from engine.training.loop import Meter, Trainer
from tests.unit.engine.training.training_toys import IMAGE_SIZE, STRIDE, ToyDistiller, ToyLoader, ToyLoss, ToyModel
from tests.unit.engine.training.training_toys import toy_trainer as trainer
from tests.unit.engine.training.training_toys import toy_validation as finds
from utils.errors import UserError


def copy_of(model: nn.Module) -> nn.Module:
    other = ToyModel()
    other.load_state_dict(model.state_dict())
    return other


def count_steps(toy: Trainer) -> list[int]:
    """Iterations at which the optimizer steps, filled while the trainer runs."""
    seen: list[int] = []
    step, forward = toy.optimizer.step, toy.forward
    now = [-1]

    def noted_forward(batch: Any, iteration: int) -> Any:
        now[0] = iteration
        return forward(batch, iteration)

    def noted_step(*args: Any, **kwargs: Any) -> Any:
        seen.append(now[0])
        return step(*args, **kwargs)

    toy.forward, toy.optimizer.step = noted_forward, noted_step  # type: ignore[method-assign]
    return seen


# Steps


def test_a_step_after_the_nominal_batch_across_epochs(tmp_path: Path) -> None:
    toy = trainer(tmp_path, loader=ToyLoader(num_batches=6, batch_size=2), hyp={"nbs": 8})
    steps = count_steps(toy)
    toy.train_epoch(0)
    # 8 / 2 = 4 batches a step: after iterations 0 to 3; 4 and 5 wait for 6 and 7 of the next epoch
    assert steps == [3]
    assert toy.model.conv.weight.grad.abs().sum() > 0
    toy.train_epoch(1)
    assert steps == [3, 7, 11]
    assert toy.ema.updates == 3
    assert toy.model.conv.weight.grad is None


def test_accumulated_small_batches_equal_a_large_one(tmp_path: Path) -> None:
    class Halves(ToyLoader):
        """Each batch of 4 as two of 2."""

        def __len__(self) -> int:
            return 2 * self.num_batches

        def __iter__(self) -> Any:
            for batch in super().__iter__():
                for images in batch.images.split(2):
                    yield replace(batch, images=images)

    large = trainer(tmp_path, loader=ToyLoader(num_batches=3, batch_size=4), hyp={"nbs": 4})
    small = trainer(tmp_path, model=copy_of(large.model), loader=Halves(3, 4), hyp={"nbs": 4})
    small.schedule.accumulate = 2
    for toy in (large, small):
        toy.train_epoch(0)
    torch.testing.assert_close(small.model.conv.weight, large.model.conv.weight)
    assert small.ema.updates == large.ema.updates == 3


def test_gradients_are_clipped_each_module_by_itself(tmp_path: Path) -> None:
    kd = ToyDistiller(weight=1e6)
    toy = trainer(
        tmp_path, criterion=ToyLoss(1e6), extra_losses=[kd], loader=ToyLoader(num_batches=1),
        hyp={"lr0": 1.0, "momentum": 0.0, "weight_decay": 0.0}, epochs=1,
    )  # fmt: skip
    norms: list[float] = []

    def note(*_: Any) -> None:
        for module in (toy.model, kd):
            norms.append(sum(p.grad.square().sum().item() for p in module.parameters()) ** 0.5)

    toy.optimizer.register_step_pre_hook(note)
    toy.train_epoch(0)
    assert norms == pytest.approx([10, 10], rel=1e-4)


def test_a_module_without_parameters_is_clipped_in_silence(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Nothing(ToyDistiller):
        def __init__(self) -> None:
            super().__init__()
            del self.adapter
            self.adapter = 1.0

    trainer(tmp_path, extra_losses=[Nothing()], epochs=1).train_epoch(0)
    assert not [w for w in recwarn if "clipping" in str(w.message)]


def test_the_average_follows_at_steps_only(tmp_path: Path) -> None:
    toy = trainer(tmp_path, loader=ToyLoader(num_batches=3, batch_size=2), hyp={"nbs": 8})
    before = toy.ema.module.conv.weight.clone()
    toy.train_epoch(0)  # three batches, a step would need four
    assert toy.ema.updates == 0 and torch.equal(toy.ema.module.conv.weight, before)


# Extra losses


def test_the_adapter_is_trained_and_the_epoch_announced(tmp_path: Path) -> None:
    kd = ToyDistiller()
    toy = trainer(tmp_path, extra_losses=[kd], epochs=3)
    toy.run()
    assert kd.adapter.item() != 0.5
    assert kd.epochs == [(0, 3), (1, 3), (2, 3)]
    assert "train/kd/toy/P2" in toy.results.rows[0]
    assert [float(row["schedule/kd"]) for row in toy.results.rows] == pytest.approx([1, 1 / 2, 1 / 3], rel=1e-5)


def test_an_extra_loss_of_zero_changes_no_bit(tmp_path: Path) -> None:
    class Zero(ToyDistiller):
        def forward(self, images: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.zeros(()), {}

    plain = trainer(tmp_path)
    zero = trainer(tmp_path, model=copy_of(plain.model), extra_losses=[Zero()])
    for toy in (plain, zero):
        toy.run()
    for key, value in plain.model.state_dict().items():
        assert torch.equal(zero.model.state_dict()[key], value)


def test_each_extra_loss_gets_the_features_of_its_own_layers(tmp_path: Path) -> None:
    class Layered(ToyModel):
        """Layer i gives the output plus i."""

        def forward(self, images: Tensor, extra_features: Any = None) -> Any:
            (x,) = super().forward(images)
            asked.append(list(extra_features))
            return [x], [x + layer for layer in extra_features]

    class Noting(ToyDistiller):
        def __init__(self, *layers: int) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: Tensor, predictions: Any, features: Any, *rest: Any, **more: Any) -> Any:
            gaps = [round(float((x - predictions[0]).detach().mean())) for x in features]
            found.append((gaps, more["detection_loss"].requires_grad))
            return super().forward(images, predictions, features[:1], *rest)

    asked: list[list[int]] = []
    found: list[tuple[list[int], bool]] = []
    trainer(tmp_path, model=Layered(), extra_losses=[Noting(3, 1), Noting(1, 2)], epochs=1).train_epoch(0)
    assert asked[0] == [3, 1, 2] and found[:2] == [([3, 1], True), ([1, 2], True)]


def test_what_was_wrong_with_an_epoch_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Doubting(ToyDistiller):
        def epoch_doubts(self, items: Mapping[str, float]) -> list[str]:
            return [f"{name} was wrong" for name in items if name.startswith("kd/")]

    logging.getLogger("yolo-distill").propagate = True
    trainer(tmp_path, extra_losses=[Doubting()], epochs=1).run()
    assert "warning: in all of epoch 1, kd/toy/P2 was wrong" in [record.message for record in caplog.records]


def test_an_extra_loss_has_to_be_a_module() -> None:
    with pytest.raises(TypeError, match="has to be a module, not SimpleNamespace"):
        ModuleLoss(SimpleNamespace())  # type: ignore[arg-type]


def test_preflight_with_the_first_batch_of_a_training_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kd = ToyDistiller()
    toy = trainer(tmp_path, extra_losses=[kd], criterion=ToyLoss(3.0))
    images = next(ToyLoader(opened=[(0, True)]).__iter__()).images / 255
    expected = 3 * toy.model(images)[0].square().mean() * 2  # of two images
    with caplog.at_level(logging.INFO, "yolo-distill"):
        logging.getLogger("yolo-distill").propagate = True
        toy.run()
    assert len(kd.checked) == 1
    torch.testing.assert_close(kd.checked[0], expected.detach())
    assert caplog.text.count("the table") == 1 and "warning" not in caplog.text
    resumed = trainer(tmp_path, extra_losses=[kd])
    resumed.state.epoch = 1
    resumed.run()
    assert len(kd.checked) == 1


@pytest.mark.parametrize(
    ("weight", "message"), [(0.0, "exactly 0 on the first batch: kd/toy/P2"), (1e-30, ""), (1.0, "")]
)
def test_preflight_warns_of_a_term_that_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weight: float, message: str
) -> None:
    logging.getLogger("yolo-distill").propagate = True
    trainer(tmp_path, extra_losses=[ToyDistiller(weight)], epochs=1).run()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(message) and all(message in w for w in warnings)


def test_a_broken_term_is_named_before_the_training_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("yolo-distill").propagate = True
    with pytest.raises(UserError, match="epoch 1: the loss term kd/toy/P2 is nan; lower lr0"):
        trainer(tmp_path, extra_losses=[ToyDistiller(float("nan"))]).run()
    assert "not finite on the first batch: kd/toy/P2" in caplog.text


# Divergence


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    toy = trainer(tmp_path, criterion=ToyLoss(float("inf")))
    with pytest.raises(UserError, match="diverged in epoch 1: the loss term box is inf") as error:
        toy.run()
    assert "last good epoch" not in str(error.value), "nothing was saved yet"
    toy.run_folder.last.touch()
    with pytest.raises(UserError, match="the last good epoch is in .*last.pt"):
        toy.run()


def test_spoilt_weights_are_not_saved(tmp_path: Path) -> None:
    class BrokenGradient(nn.Module):
        def forward(self, predictions: list[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = (predictions[0].sum() * 0).sqrt()  # 0, and its gradient is infinity times 0
            return loss, {"box": loss.detach()}

    saved: list[int] = []
    toy = trainer(
        tmp_path,
        criterion=BrokenGradient(),
        loader=ToyLoader(num_batches=1),
        save=lambda t: saved.append(t.state.epoch),
    )
    with pytest.raises(UserError, match="weights are not finite"):
        toy.run()
    assert saved == []


# Means and captions


def test_means() -> None:
    meter = Meter()
    assert meter.means() == {}
    value = torch.tensor(1.0, requires_grad=True)
    meter.update({"box": value * 1})
    meter.update({"box": torch.tensor(2.0), "kd": torch.tensor(5.0)})
    meter.update({"box": torch.tensor(6.0), "kd": torch.tensor(7.0)})
    assert meter.means() == {"box": 3.0, "kd": 6.0}  # 9 / 3, and 12 / 2 batches that had it
    assert not meter.sums["box"].requires_grad


def test_means_do_not_change_the_items() -> None:
    meter, item = Meter(), torch.tensor(1.0)
    meter.update({"box": item})
    meter.update({"box": torch.tensor(1.0)})
    assert item.item() == 1.0


def test_the_caption_sums_the_terms_of_one_source(tmp_path: Path) -> None:
    caption = trainer(tmp_path)._caption(1, {"box": 0.5, "kd/fgd/P3": 1.0, "kd/output/cls": 0.25})
    assert caption == "epoch 2/2  box 0.5  kd 1.25"


# Epochs


@pytest.mark.parametrize(
    ("flag", "hyp", "expected"), [(1, 0, [True] * 3 + [False]), (0, 3, [True] + [False] * 3), (9, 0, [False] * 4)]
)
def test_mosaics_stop_before_the_end(tmp_path: Path, flag: int, hyp: int, expected: list[bool]) -> None:
    loader = ToyLoader(num_batches=1)
    trainer(tmp_path, loader=loader, epochs=4, close_mosaic=flag, hyp={"close_mosaic": hyp}).run()
    assert loader.opened == list(enumerate(expected))


def test_stops_when_nothing_has_improved(tmp_path: Path) -> None:
    saved: list[tuple[int, bool]] = []
    toy = trainer(
        tmp_path, loader=ToyLoader(num_batches=1), epochs=20, patience=2,
        validate=finds([0, 0, 0, 0, 0.3, 0.2, 0.2, 0.9]), save=lambda t: saved.append((t.state.epoch, t.state.stopped)),
    )  # fmt: skip
    state = toy.run()
    # the zeros do not count against the patience; 0.3 in epoch 4 is the best, two epochs later it is enough
    assert (state.epoch, state.best_epoch, state.best_fitness) == (7, 4, 0.3)
    assert saved == [(i, i == 7) for i in range(1, 8)], "the file of the last epoch is written when that is known"


def test_patience_looks_at_validated_epochs(tmp_path: Path) -> None:
    toy = trainer(
        tmp_path, loader=ToyLoader(num_batches=1), epochs=9, patience=1, val_period=2, validate=finds([0.3, 0.2])
    )
    # validated after epochs 1 and 3; epoch 2 is no improvement on 1, but nobody looked
    assert toy.run().epoch == 4


@pytest.mark.parametrize(
    ("options", "validated"),
    [({"val_period": 2}, [1, 3, 4]), ({"notest": True}, [4]), ({"val_period": 9}, [4]), ({}, [0, 1, 2, 3, 4])],
)
def test_validated_epochs(tmp_path: Path, options: dict[str, Any], validated: list[int]) -> None:
    toy = trainer(
        tmp_path, loader=ToyLoader(num_batches=1), epochs=5, validate=finds([0.1, 0.2, 0.3, 0.4, 0.5]), **options
    )
    state = toy.run()
    assert [row["epoch"] for row in toy.results.rows if "metrics/AP" in row] == validated
    assert all("fitness" not in row and "x/lr0" in row for row in toy.results.rows)
    assert state.best_epoch == 4 and state.class_ap == pytest.approx([state.best_fitness])


# Multi-scale


def sizes_of(toy: Trainer, iterations: range, side: int = IMAGE_SIZE) -> list[tuple[int, int]]:
    images = torch.rand(1, 3, side, IMAGE_SIZE)
    return [tuple(toy._rescale(images, i).shape[2:]) for i in iterations]  # type: ignore[misc]


def test_sizes_follow_from_seed_and_iteration(tmp_path: Path) -> None:
    toy, again = trainer(tmp_path, multi_scale=True), trainer(tmp_path, multi_scale=True)
    sizes = sizes_of(toy, range(60))
    assert sizes_of(again, range(59, -1, -1)) == sizes[::-1]
    assert sizes_of(trainer(tmp_path, seed=1), range(60)) != sizes
    # half to one and a half of 16 in steps of 4
    assert set(sizes) == {(s, s) for s in (8, 12, 16, 20, 24)}


def test_sizes_keep_the_proportions(tmp_path: Path) -> None:
    toy = trainer(tmp_path, multi_scale=True)
    for height, width in sizes_of(toy, range(40), side=IMAGE_SIZE // 2):
        assert height % STRIDE == width % STRIDE == 0
        assert abs(height - width / 2) <= STRIDE / 2
