from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.checkpoint import load_checkpoint, save_checkpoint, strip_checkpoint
from engine.loop import Trainer
from engine.state import model_entry, newest_last, restore_training, rng_states, save_training, set_rng_states
from tests.unit.training_toys import ToyDistiller, ToyLoader, ToyLoss, ToyModel
from tests.unit.training_toys import toy_trainer as trainer
from tests.unit.training_toys import toy_validation as finds
from utils.errors import UserError


def tensors_of(toy: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a step depends on or changes."""
    modules = {"model": toy.model, "ema": toy.ema.module, "kd": toy.extra_losses[0]}
    found = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, state in toy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


def noisy(folder: Path, optimizer: str, **more: Any) -> Trainer:
    """Four epochs that depend on the random stream, the sizes, pending gradients, the momentum and the adapter."""
    return trainer(
        folder, criterion=ToyLoss(noise=0.5), extra_losses=[ToyDistiller()], loader=ToyLoader(num_batches=5),
        hyp={"nbs": 8}, optimizer=optimizer, epochs=4, multi_scale=True, patience=3,
        **({"validate": finds([0.3, 0.2, 0.1, 0.4])} | more),
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    torch.manual_seed(0)
    whole = noisy(tmp_path / "whole", optimizer, save=lambda t: save_training(t) if t.state.epoch == 2 else None)
    whole.run()
    checkpoint = load_checkpoint(whole.run_folder.last)
    assert checkpoint.training["gradients"]["conv.weight"].abs().sum() > 0, "2 of 10 batches wait for their step"
    torch.manual_seed(99)
    again = noisy(tmp_path / "whole", optimizer, validate=finds([0.1, 0.4]))
    restore_training(again, checkpoint)
    assert (again.state.epoch, again.state.best_epoch, again.state.class_ap) == (2, 0, pytest.approx([0.2]))
    again.run()
    expected, got = tensors_of(whole), tensors_of(again)
    assert list(expected) == list(got)
    assert not [key for key, value in expected.items() if not torch.equal(got[key], value)]
    assert again.ema.updates == whole.ema.updates == 5
    assert again.state == whole.state
    timeless = [[{k: str(v) for k, v in r.items() if "time" not in k} for r in t.results.rows] for t in (whole, again)]
    assert timeless[0] == timeless[1]


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_training(noisy(tmp_path, "SGD"))
    checkpoint = load_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    for other, reason in (
        (trainer(tmp_path, model=ToyModel(3), extra_losses=[ToyDistiller()]), "size mismatch for state_dict: conv.weight"),
        (trainer(tmp_path), "1 extra losses in the file, 0 in this run"),
    ):
        with pytest.raises(UserError, match="does not fit the run that it belongs to") as error:
            restore_training(other, checkpoint)
        assert "\n" not in str(error.value)
        assert reason in str(error.value)


def test_pending_gradients_change_device_with_their_scale(tmp_path: Path) -> None:
    toy = noisy(tmp_path, "SGD")
    toy.train_epoch(0)
    toy.state.epoch = 1
    save_training(toy)
    checkpoint = load_checkpoint(toy.run_folder.last)
    checkpoint.training["scaler"] = {"scale": 1024.0}  # as a GPU writes it
    again = noisy(tmp_path, "SGD")
    restore_training(again, checkpoint)
    assert torch.equal(again.model.conv.weight.grad * 1024, toy.model.conv.weight.grad)
    assert torch.equal(again.extra_losses[0].adapter.grad * 1024, toy.extra_losses[0].adapter.grad)


def test_another_number_of_processes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = noisy(tmp_path, "SGD")
    save_training(toy)
    checkpoint = load_checkpoint(toy.run_folder.last)
    checkpoint.training["world_size"] = 4
    logging.getLogger("yolo-distill").propagate = True
    restore_training(noisy(tmp_path, "SGD"), checkpoint)
    assert "began with 4 process(es) and goes on with 1" in caplog.text


# Files


def fitness_of(path: Path) -> tuple[int, dict[str, float]]:
    checkpoint = load_checkpoint(path)
    return checkpoint.epoch, checkpoint.extra["metrics"]


def test_best_and_last_and_periodic_files(tmp_path: Path) -> None:
    toy = trainer(
        tmp_path, epochs=4, save_period=2, validate=finds([0.1, 0.3, 0.2, 0.2]), save=save_training,
        loader=ToyLoader(num_batches=1),
    )  # fmt: skip
    toy.run()
    weights = toy.run_folder.weights
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "epoch002.pt", "epoch004.pt", "last.pt"]
    assert fitness_of(weights / "best.pt") == (1, {"metrics/AP": 0.3, "metrics/AP50": 0.3})
    assert fitness_of(weights / "last.pt") == (3, {"metrics/AP": 0.2, "metrics/AP50": 0.2})
    assert [load_checkpoint(weights / f"{name}.pt").best_fitness for name in ("best", "last")] == [0.3, 0.3]
    torch.testing.assert_close(
        load_checkpoint(weights / "last.pt").state_dict, toy.ema.module.state_dict(), rtol=0, atol=0
    )
    assert not load_checkpoint(weights / "best.pt").training
    strip_checkpoint(weights / "last.pt")
    assert not load_checkpoint(weights / "last.pt").training


def test_without_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    epochs: list[int] = []

    def save(toy: Trainer) -> None:
        save_training(toy)
        epochs.append(fitness_of(toy.run_folder.best)[0])

    trainer(tmp_path, epochs=3, notest=True, loader=ToyLoader(num_batches=1), save=save).run()
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize("patience", [0, 1])
def test_nosave_keeps_the_last_epoch_alone(tmp_path: Path, patience: int) -> None:
    names: list[int] = []

    def save(toy: Trainer) -> None:
        save_training(toy)
        names.append(len(list(toy.run_folder.weights.iterdir())))

    toy = trainer(
        tmp_path, epochs=3, nosave=True, patience=patience, save_period=1, validate=finds([0.3, 0.2, 0.2]), save=save,
        loader=ToyLoader(num_batches=1),
    )  # fmt: skip
    state = toy.run()
    # with a patience of 1 the training ends after its second epoch, and is kept all the same
    assert state.epoch == (2 if patience else 3)
    assert names == [0] * (state.epoch - 1) + [3]
    assert fitness_of(toy.run_folder.best) == (state.epoch - 1, {"metrics/AP": 0.2, "metrics/AP50": 0.2})


def test_the_entry_does_not_follow_the_model() -> None:
    model = ToyModel()
    entry = model_entry(model)  # type: ignore[arg-type]
    before = entry["state_dict"]["conv.weight"].clone()
    nn.init.zeros_(model.conv.weight)
    assert torch.equal(entry["state_dict"]["conv.weight"], before)


def test_random_states(tmp_path: Path) -> None:
    def draw() -> list[float]:
        # A normal number leaves a second one waiting, which belongs to the state.
        return [random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002

    draw()
    save_checkpoint(tmp_path / "states.pt", {"model": model_entry(ToyModel()), "training": {"rng": rng_states()}})  # type: ignore[arg-type]
    expected = draw()
    assert draw() != expected
    set_rng_states(load_checkpoint(tmp_path / "states.pt").training["rng"])
    assert draw() == expected


def test_the_newest_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no last.pt below"):
        newest_last(tmp_path)
    for age, name in enumerate(("train/exp2", "distill/exp", "train/exp")):
        path = tmp_path / name / "weights" / "last.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_last(tmp_path) == tmp_path / "train/exp2/weights/last.pt"
