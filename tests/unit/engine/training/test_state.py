from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.checkpoint import load_checkpoint, save_checkpoint, strip_checkpoint
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.training.loop import Trainer
from engine.training.state import (
    model_entry,
    newest_last,
    restore_training,
    rng_states,
    run_state,
    save_training,
    set_rng_states,
    strip_run,
)
from engine.training.state_check import checked_hyp, checked_options, upgraded
from tests.unit.engine.training.training_toys import ToyDistiller, ToyLoader, ToyLoss, ToyModel
from tests.unit.engine.training.training_toys import toy_trainer as trainer
from tests.unit.engine.training.training_toys import toy_validation as finds
from utils.errors import UserError


def tensors_of(toy: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a step depends on or changes."""
    modules = {"model": toy.model, "ema": toy.ema.module, "kd": toy.extra_modules[0]}
    found = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, state in toy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


def noisy(folder: Path, optimizer: str, **more: Any) -> Trainer:
    """Four epochs that depend on the random stream, the sizes, pending gradients, the momentum and the adapter."""
    return trainer(
        folder, criterion=ToyLoss(noise=0.5), extra_losses=[ToyDistiller()],
        hyp={"nbs": 8}, optimizer=optimizer, epochs=4, multi_scale=True, patience=3,
        **({"validate": finds([0.3, 0.2, 0.1, 0.4]), "loader": ToyLoader(num_batches=5)} | more),
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
        (
            trainer(tmp_path, model=ToyModel(3), extra_losses=[ToyDistiller()]),
            "size mismatch for state_dict: conv.weight",
        ),
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
    assert torch.equal(again.extra_modules[0].adapter.grad * 1024, toy.extra_modules[0].adapter.grad)


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


# A file that is damaged, or was changed by hand

NAN = float("nan")
Entries = dict[str, Any]
CHANGES: dict[str, Callable[[Entries], Any]] = {
    "weights missing": lambda t: t["state_dict"].pop("conv.weight"),
    "weights too many": lambda t: t["state_dict"].update({"\x1b[31mmore": torch.zeros(2)}),
    "weights of another shape": lambda t: t["state_dict"].update({"conv.bias": torch.zeros(3)}),
    "weights of another type": lambda t: t["state_dict"].update({"conv.bias": torch.zeros(2, dtype=torch.float64)}),
    "weights that are none": lambda t: t["state_dict"].update({"conv.bias": [0.0, 0.0]}),
    "weights not finite": lambda t: t["state_dict"].update({"conv.bias": torch.tensor([0.0, NAN])}),
    "a negative count of updates": lambda t: t.update(ema_updates=-1),
    "no adapters": lambda t: t.update(extra_losses=[]),
    "adapters that are none": lambda t: t.update(extra_losses=["x"]),
    "an adapter of another shape": lambda t: t["extra_losses"][0].update(adapter=torch.zeros(2)),
    "an adapter not finite": lambda t: t["extra_losses"][0].update(adapter=torch.tensor(NAN)),
    "no gradients": lambda t: t.update(gradients={}),
    "gradients of something else": lambda t: t["gradients"].update(x=torch.zeros(2)),
    "a gradient of another shape": lambda t: t["gradients"].update({"conv.bias": torch.zeros(3)}),
    "a gradient not finite": lambda t: t["gradients"].update({"conv.bias": torch.tensor([0.0, NAN])}),
    "a gradient of another type": lambda t: t["gradients"].update({"conv.bias": torch.zeros(2, dtype=torch.int64)}),
    "adapters' gradients that are none": lambda t: t.update(extra_gradients=[3]),
    "an empty optimizer": lambda t: t["optimizer"].update(state={}),
    "an optimizer of text": lambda t: t["optimizer"].update(state="x"),
    "no groups": lambda t: t["optimizer"].update(param_groups=[]),
    "groups of text": lambda t: t["optimizer"].update(param_groups=["x", "y", "z"]),
    "a group without kind": lambda t: t["optimizer"]["param_groups"][0].pop("kind"),
    "another weight decay": lambda t: t["optimizer"]["param_groups"][1].update(weight_decay=0.1),
    "momentum of an unknown parameter": lambda t: t["optimizer"]["state"].update({99: {}}),
    "momentum of another shape": lambda t: t["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7)),
    "momentum not finite": lambda t: t["optimizer"]["state"][0].update(momentum_buffer=torch.full((2,), NAN)),
    "no momentum": lambda t: t["optimizer"]["state"][0].clear(),
    "momentum of another optimizer": lambda t: t["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)),
    "a scale that is none": lambda t: t.update(scaler={"scale": "x"}),
    "a scale of nothing": lambda t: t.update(scaler={"scale": 0.0}),
    "a scale not finite": lambda t: t.update(scaler={"scale": NAN}),
    "a scaler without scale": lambda t: t.update(scaler={"x": 1.0}),
    "a step of the future": lambda t: t["state"].update(last_step=10**9),
    "a state with more": lambda t: t["state"].update(x=1),
    **{f"no {key}": (lambda t, key=key: t["rng"].pop(key)) for key in ("python", "numpy", "torch")},
    **{f"{key} of text": (lambda t, key=key: t["rng"].update({key: "x"})) for key in ("python", "numpy", "torch")},
    "torch's state too short": lambda t: t["rng"].update(torch=torch.zeros(3, dtype=torch.uint8)),
    "torch's state of another type": lambda t: t["rng"].update(torch=t["rng"]["torch"].float()),
    "torch's state of zeros": lambda t: t["rng"].update(torch=t["rng"]["torch"] * 0),
    "numpy's position far out": lambda t: t["rng"]["numpy"].__setitem__(2, 10**6),
    "numpy's keys too large": lambda t: t["rng"]["numpy"].__setitem__(1, [2**70] * 624),
    "Python's words too few": lambda t: t["rng"]["python"].__setitem__(1, [1, 2]),
    "Python's words too large": lambda t: t["rng"]["python"].__setitem__(1, [2**70] * 625),
    "Python's other version": lambda t: t["rng"]["python"].__setitem__(0, 99),
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last.pt of a training that was cut after its second epoch, with gradients that wait for their step."""
    toy = noisy(tmp_path_factory.mktemp("cut"), "SGD", save=lambda t: save_training(t) if t.state.epoch == 2 else None)
    toy.run()
    return toy.run_folder.last


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_training_wrote_is_one_line(tmp_path: Path, cut: Path, change: str) -> None:
    checkpoint = load_checkpoint(cut)
    CHANGES[change](checkpoint.training)
    with pytest.raises(UserError, match="does not fit the run that it belongs to") as error:
        restore_training(noisy(tmp_path, "SGD"), checkpoint)
    assert str(error.value).isprintable()


def test_fewer_batches_than_before(tmp_path: Path, cut: Path) -> None:
    """A step that lies ahead of all batches would keep the optimizer from stepping until they have caught up."""
    checkpoint = load_checkpoint(cut)
    shorter = noisy(tmp_path, "SGD", loader=ToyLoader(num_batches=2))
    with pytest.raises(UserError, match="last_step"):
        restore_training(shorter, checkpoint)
    restore_training(shorter, checkpoint, same_data=False)
    assert shorter.state.last_step == 3  # of two epochs of two batches


@pytest.mark.parametrize("manifest", [None, "{", '{"finished": {"epochs": 3}}'])
def test_how_far_a_run_has_come(tmp_path: Path, manifest: str | None) -> None:
    assert run_state(tmp_path) == "empty"
    toy = noisy(tmp_path, "SGD")
    save_training(toy)
    run = toy.run_folder
    if manifest:
        (run.path / "manifest.json").write_text(manifest)
    assert run_state(run.path) == "interrupted"
    strip_run(run)
    once = run.last.read_bytes()
    strip_run(run)
    assert run.last.read_bytes() == once
    assert run_state(run.path) == ("finished" if manifest and "finished" in manifest else "evaluating")
    assert load_checkpoint(run.last).extra["run"].keys() == {"version", "options", "state", "data", "world_size"}


def test_an_entry_of_an_earlier_version_does_what_that_version_did() -> None:
    options = TrainOptions(init="auto", inherit="t.pt").to_dict()
    older = {key: value for key, value in options.items() if key not in ("init", "inherit", "inherit_importance")}
    found = upgraded({"version": 2, "options": older, "state": {}})
    assert found["version"] == 3 and checked_options(found["options"]) == replace(TrainOptions(), init="scratch")
    assert found["state"] == {} and "data" not in found, "what version 2 had is not made up"
    for version in (3, 4, "2", True, None):
        entry = {"version": version, "options": older}
        assert upgraded(entry) is entry, "what is missing there is damage"
    values = {key: value for key, value in Hyp(nbs=32).to_dict().items() if key != "ema_ramp"}
    assert checked_hyp(values, "last.pt").ema_ramp == 2000
