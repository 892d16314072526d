"""Two processes on this machine agree, average, and train what one process would."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.training.distributed import (
    World,
    agree,
    announced_world,
    average_gradients,
    broadcast_module,
    join_world,
    leave_world,
    main_first,
)
from engine.training.loop import Trainer
from tests.unit.engine.training.training_toys import ToyDistiller, ToyLoader, ToyModel
from tests.unit.engine.training.training_toys import toy_trainer as trainer
from tests.unit.engine.training.training_toys import toy_validation as finds
from utils.errors import UsageError

CPU = torch.device("cpu")
FITNESS = (0.3, 0.2, 0.1, 0.1)


def same_start(folder: Path, **more: Any) -> Trainer:
    """Five epochs of five batches of four images, a step after two of them, and after two bad epochs the end."""
    torch.manual_seed(0)
    kd = ToyDistiller()
    return trainer(
        folder, model=ToyModel(), extra_losses=[kd], epochs=5, patience=2, hyp={"nbs": 8},
        **({"loader": ToyLoader(num_batches=5, batch_size=4), "validate": finds(FITNESS)} | more),
    )  # fmt: skip


def outcome(toy: Trainer) -> dict[str, Any]:
    """What must be alike: weights, adapter, pending gradients, the last epoch."""
    kd = toy.extra_modules[0]
    return {
        "weights": dict(toy.model.state_dict()),
        "average": dict(toy.ema.module.state_dict()),
        "adapter": kd.adapter.detach().clone(),
        "gradients": [p.grad.clone() for module in (toy.model, kd) for p in module.parameters()],
        "epoch": toy.state.epoch,
    }


def work(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does; leaves a file of what it found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    world = announced_world(batch_size=4)
    join_world(world, CPU)
    found: dict[str, Any] = {"world": [world.rank, world.local_rank, world.size, world.is_main, world.active]}

    module = nn.BatchNorm1d(2)
    with torch.no_grad():
        for value in module.state_dict().values():
            value += rank + 1
    broadcast_module(module, world)
    found["broadcast"] = dict(module.state_dict())

    module = nn.Linear(1, 1)
    module.weight.grad = torch.full((1, 1), 2.0 + 4 * rank)
    module.bias.grad = torch.ones(1) if rank else None
    frozen = nn.Linear(1, 1).requires_grad_(False)
    average_gradients(nn.ModuleList([module, frozen]), world)
    found["averaged"] = [module.weight.grad.item(), module.bias.grad.item(), frozen.weight.grad]

    found["agreed"] = [agree({"rank": rank}, world), agree(rank == 1, world)]
    note = folder / "note"
    with main_first(world):
        found["note"] = note.exists()
        note.touch()

    folder = folder / f"rank{rank}"
    loader = ToyLoader(num_batches=5, batch_size=4, share=(rank, 2))
    validate = finds(FITNESS) if rank == 0 else lambda network: pytest.fail("only the first validates")
    toy = same_start(folder, loader=loader, world=world, wrap=DistributedDataParallel, validate=validate)
    toy.run()
    found["training"] = outcome(toy)
    torch.save(found, folder.parent / f"rank{rank}.pt")
    leave_world(world)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder), nprocs=2)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_know_each_other(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = pair[1]
    assert (first["world"], second["world"]) == ([0, 0, 2, True, True], [1, 1, 2, False, True])
    assert first["agreed"] == second["agreed"] == [{"rank": 0}, False]
    assert (first["note"], second["note"]) == (False, True), "the second waits until the first is done"


def test_the_first_ones_weights_and_statistics(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    expected = {"weight": 2, "bias": 1, "running_mean": 1, "running_var": 2, "num_batches_tracked": 1}
    for found in pair[1]:
        assert {key: value.unique().item() for key, value in found["broadcast"].items()} == expected


def test_averaged_gradients(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in pair[1]:
        assert found["averaged"] == [4.0, 0.5, None]  # (2 + 6) / 2, and (0 + 1) / 2; a frozen one has none


def test_two_processes_train_what_one_would(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = pair
    alone = same_start(folder / "alone")
    alone.run()
    assert alone.state.epoch == 3, "two epochs without improvement after the first"
    # Sums in another order; a wrong scale would be wrong by a factor.
    torch.testing.assert_close(first["training"], outcome(alone), rtol=1e-4, atol=1e-5)
    # 15 batches, a step after two: one is pending, and what is saved by one must be what both go on with
    torch.testing.assert_close(first["training"], second["training"], rtol=0, atol=0)
    assert first["training"]["gradients"][0].abs().sum() > 0


def test_only_the_first_writes(pair: tuple[Path, list[dict[str, Any]]]) -> None:
    folder = pair[0]
    assert (folder / "rank0/run/results.csv").is_file()
    assert not list((folder / "rank1").rglob("results.csv"))


# One process


def test_a_single_process_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = announced_world(3)
    assert world == World() and world.is_main and not world.active
    join_world(world, CPU)
    module = nn.Linear(1, 1)
    broadcast_module(module, world)
    average_gradients(module, world)
    assert module.weight.grad is None and agree([1], world) == [1]
    leave_world(world)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, "--batch-size 18 is not a multiple of the 4 .*use 16"),
        ({"WORLD_SIZE": "32", "RANK": "0", "LOCAL_RANK": "0"}, "--batch-size 18 .* use 32"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is not set; start several processes with torchrun"),
    ],
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        announced_world(18)
