"""Training through torch.compile: the same steps, and weights under the model's own names."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from distill import Preflight
from engine.config.options import TrainOptions
from engine.training.distributed import World
from engine.training.loop import Trainer
from engine.training.train import wrap
from tests.unit.engine.training.test_loop import trainer
from tests.unit.engine.training.training_toys import ToyDistiller, ToyModel

EAGER = functools.partial(torch.compile, backend="eager", fullgraph=True)
CPU = torch.device("cpu")


class Watching(ToyDistiller):
    """Notes how many parameters a preflight was given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def preflight(self, *args: object) -> Preflight:
        self.counts.append(len(list(args[5])))  # type: ignore[call-overload]
        return Preflight("the table")


def run(folder: Path, compiled: bool) -> tuple[Trainer, Watching]:
    torch.manual_seed(0)
    kd = Watching()
    toy = trainer(folder, extra_losses=[kd], epochs=2, compile=compiled)
    toy.wrapped = wrap(toy.model, toy.options, World(), CPU)
    toy.run()
    return toy, kd


def test_a_compiled_training_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph with the features that a distiller asks for."""
    monkeypatch.setattr(torch, "compile", EAGER)
    (plain, plain_kd), (compiled, kd) = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert plain.wrapped is plain.model and isinstance(compiled.wrapped, torch._dynamo.OptimizedModule)
    for state in (compiled.model.state_dict(), compiled.ema.module.state_dict()):
        assert list(state) == list(plain.model.state_dict()), "no prefix"
    for key, value in plain.model.state_dict().items():
        assert torch.equal(compiled.model.state_dict()[key], value)
    assert torch.equal(kd.adapter, plain_kd.adapter)


def test_a_compiled_training_does_not_measure_gradients_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled graph's buffers may be given away in its first backward pass."""
    monkeypatch.setattr(torch, "compile", EAGER)
    assert run(tmp_path / "a", False)[1].counts == [len(list(ToyModel().parameters()))]
    assert run(tmp_path / "b", True)[1].counts == [0]


def test_the_wrapped_model_is_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: (dynamic, module))
    model = ToyModel()
    assert wrap(model, TrainOptions(), World(), CPU) is model
    assert wrap(model, TrainOptions(compile=True), World(), CPU) == (False, model)
    assert wrap(model, TrainOptions(compile=True, multi_scale=True), World(), CPU) == (None, model)
