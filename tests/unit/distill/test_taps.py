"""Hooks on a foreign network."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from distill.taps import HookTap, remove_hooks


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())


def test_a_file_without_hooks_does_not_need_this_package() -> None:
    student = network()
    HookTap(student, ["0"], "student")
    foreign = student[1].register_forward_hook(print)
    ema = copy.deepcopy(student)
    assert b"distill" in pickle.dumps(ema)
    remove_hooks(ema)
    assert b"distill" not in pickle.dumps(ema)
    assert foreign.id in ema[1]._forward_hooks, "hooks of others stay"


def test_the_student_itself_is_still_tapped() -> None:
    student = network()
    tap = HookTap(student, ["0"], "student")
    remove_hooks(copy.deepcopy(student))
    images = torch.randn(1, 3, 2, 2)
    student(images)
    assert torch.equal(tap.collect(())[0], student[0](images))
