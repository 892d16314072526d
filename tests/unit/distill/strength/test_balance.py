"""The rule by which factors follow the measured ratios, in hand-worked numbers."""

from __future__ import annotations

import math

import pytest
import torch

from distill import DistillError
from distill.strength.balance import AN_EPOCH, BEGINNING, Balance
from distill.strength.gradients import squared_norms, through
from distill.strength.mixture import SHARE, Portion

NAN = math.nan


def balance(*shares: float) -> Balance:
    return Balance([Portion(f"loss{i}", f"loss{i}", ("P3",), SHARE, share) for i, share in enumerate(shares)])


def factors(kept: Balance) -> list[float]:
    return kept.factors.tolist()


def begun(ratio: float = 0.2, share: float = 0.4) -> Balance:
    """After a beginning of equal ratios, at the start of the next epoch: a factor of share / ratio, 2 by default."""
    kept = balance(share)
    kept.start_epoch()
    for _ in range(BEGINNING):
        kept.update([ratio])
    kept.start_epoch()
    return kept


def test_the_beginning_follows_the_geometric_mean_from_the_first_batch_on() -> None:
    kept = balance(0.4, 1.0)
    assert factors(kept) == [0, 0] and not kept.known, "nothing is known before a labelled batch"
    kept.update([0.2, 4.0])
    assert factors(kept) == pytest.approx([2, 0.25])  # 0.4 / 0.2, 1 / 4
    kept.update([0.8, 4.0])
    assert factors(kept) == pytest.approx([1, 0.25])  # sqrt(2 * 0.5)
    kept.update([0.05, 32.0])
    assert factors(kept) == pytest.approx([2, 0.125])  # cube root of 2 * 0.5 * 8; of 1/4 * 1/4 * 1/32
    assert kept.row("kd") == pytest.approx(
        # what was reached with the factors of the time: 0.4, 0.8, 0.1, and 1, 1, 4
        {"share/kd/loss0": (0.4 * 0.8 * 0.1) ** (1 / 3), "share/kd/loss1": 4 ** (1 / 3)}
        | {"factor/kd/loss0": 2, "factor/kd/loss1": 0.125}
    )


def test_the_epoch_in_which_the_beginning_ends_measures_no_more() -> None:
    kept = balance(0.4)
    kept.start_epoch()
    for _ in range(BEGINNING):
        assert kept.due
        kept.update([0.2])
    assert not kept.due
    kept.start_epoch()
    assert kept.due


def test_an_epoch_moves_half_of_the_way_after_its_first_batches() -> None:
    kept = begun()
    for ratio in (0.1, 0.4, 0.1, 0.1):  # 4, 1, 4, 4: their geometric mean is 64 ** (1/4) = 2.828
        assert kept.due and factors(kept) == pytest.approx([2])
        kept.update([ratio])
    assert factors(kept) == pytest.approx([2 * math.sqrt(64 ** (1 / 4) / 2)])
    assert not kept.due, "four of them"
    kept.start_epoch()
    assert kept.due


@pytest.mark.parametrize(("ratio", "expected"), [(0.2 / 100, 4), (0.2 * 100, 1)])
def test_an_epoch_moves_by_a_factor_of_two_at_most(ratio: float, expected: float) -> None:
    kept = begun()
    for _ in range(AN_EPOCH):
        kept.update([ratio])
    assert factors(kept) == pytest.approx([expected])


def test_an_epoch_of_few_labelled_batches_counts_at_its_end() -> None:
    kept = begun()
    kept.update([0.1])
    assert factors(kept) == pytest.approx([2])
    kept.start_epoch()
    assert factors(kept) == pytest.approx([2 * math.sqrt(2)])  # half of the way from 2 to 4
    kept.start_epoch()
    assert factors(kept) == pytest.approx([2 * math.sqrt(2)]), "once"


def test_a_batch_that_says_nothing_of_a_portion_is_passed_over() -> None:
    kept = balance(0.4, 1.0)
    kept.update([0.2, NAN])
    assert factors(kept) == pytest.approx([2, 0]) and kept.counts.tolist() == [1, 0] and not kept.known
    kept.update([NAN, 2.0])
    assert factors(kept) == pytest.approx([2, 0.5]) and kept.known


def test_a_copy_from_the_saved_state_goes_on_bit_for_bit() -> None:
    ratios = [0.1 + 0.37 * (i % 7) for i in range(40)]
    kept, other = balance(0.4), balance(0.4)
    for step, ratio in enumerate(ratios):
        if step % 10 == 0:
            other = balance(0.4)
            other.load_state_dict({name: value.clone() for name, value in kept.state_dict().items()})
            kept.start_epoch()
            other.start_epoch()
        for each in (kept, other):
            if each.due:
                each.update([ratio])
        assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), other.state_dict().values()))
    assert kept.counts.item() == BEGINNING and kept.factors.item() > 0


def test_a_state_from_before_there_were_shares_starts_anew() -> None:
    kept = begun()
    kept.load_state_dict({})
    assert factors(kept) == [0] and kept.due


def test_a_portion_far_above_its_share_for_a_whole_epoch_is_warned_of() -> None:
    kept = begun()
    kept.update([2.1])  # 4.2 with the factor 2, where 0.4 is asked for
    assert [line.split(" of the")[0] for line in kept.excesses()] == ["the gradient of loss0 was at least 4.2"]
    kept.update([1.9])
    assert kept.excesses() == [], "not in every batch"


# Measuring


W = torch.tensor([3.0, 4.0], requires_grad=True)
NO_BOX, BOX = torch.tensor(0), torch.tensor(1)


def measure(kept: Balance, slope: float, labels: torch.Tensor = BOX, detection: float = 1.0) -> None:
    """A portion `fgd` with a gradient of `slope` times (3, 4), a detection loss with one of (3, 4): ratio `slope`."""
    maps = W * 1.0
    values = {"fgd": {"P3": slope * maps.square().sum() / 2}}
    kept.measure(values, {"features": [maps]}, detection * maps.square().sum() / 2, labels, {"features": [75]})


def fgd() -> Balance:
    return Balance([Portion("fgd", "fgd", ("P3",), SHARE, 0.4)])


def test_ratios_of_gradients_by_hand() -> None:
    maps = W * 1.0
    loss = maps.square().sum() / 2  # its gradient is (3, 4)
    assert squared_norms([(loss, [maps]), (2 * loss, [maps]), (loss.detach(), [maps])]) == [25, 100, 0]
    assert W.grad is None
    kept = fgd()
    measure(kept, 0.1)
    assert factors(kept) == pytest.approx([4])


def test_half_precision_neither_loses_small_gradients_nor_overflows() -> None:
    """Gradients of 1e-8 lie below the smallest number of float16, 6e-8, and 2e5 above the largest."""
    maps = torch.ones(4, requires_grad=True).half()
    found = squared_norms([(maps.float().sum() * 1e-8, [maps]), (maps.float().sum() * 5e4, [maps])])
    assert found == pytest.approx([4e-16, 1e10], rel=0.02)


def test_a_gradient_through_outputs_that_were_computed_anew() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    opaque = (x * 3).detach().requires_grad_()
    loss = opaque.square().sum()  # gradient 2 * 3x at the outputs, and so 18 x at x
    maps = x * 1.0
    (found,) = torch.autograd.grad(through([opaque], loss, [maps * 3]), maps)
    assert found.tolist() == [18, 36]


def test_a_batch_without_boxes_is_skipped() -> None:
    kept = fgd()
    measure(kept, 0.1, NO_BOX)
    assert factors(kept) == [0] and kept.counts.tolist() == [0]


@pytest.mark.parametrize(
    ("slope", "detection", "message"),
    [
        (0.0, 1.0, r"kd_losses.fgd: its gradient at the student's layers \[75\] is 0, so no share of it can be had"),
        (NAN, 1.0, "kd_losses.fgd: its gradient .* is not finite"),
        (1.0, 0.0, "kd_losses.fgd: the detection loss's gradient .* is 0, .*; choose layers that feed"),
        (1.0, math.inf, "kd_losses.fgd: the detection loss's gradient .* is not finite"),
    ],
)
def test_no_gradient_is_an_error_at_first_and_a_batch_passed_over_later(
    slope: float, detection: float, message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        measure(fgd(), slope, detection=detection)
    kept = fgd()
    measure(kept, 0.1)
    measure(kept, slope, detection=detection)
    assert factors(kept) == pytest.approx([4]), "one odd batch must not end a long training"


def test_layers_that_are_frozen_are_refused() -> None:
    with pytest.raises(DistillError, match="layers of the student that are frozen; freeze fewer layers"):
        squared_norms([(W.sum(), [torch.zeros(2)])])
