"""The digits that the models are trained on: 1,797 pictures of 8x8 pixels, which come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

SEED = 0
TEST_SAMPLES = 600
CALIBRATION_SAMPLES = 512

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """Pictures as float32 (N, 1, 8, 8) in 0..1 and their labels as int64 (N,), in a train and a test part."""

    train: Array
    train_labels: Array
    test: Array
    test_labels: Array


def load() -> Digits:
    """Returns the pictures, split once and for all: every digit has the same share of both parts."""
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        pictures, labels.astype(np.int64), test_size=TEST_SAMPLES, stratify=labels, random_state=SEED
    )
    return Digits(train, train_labels, test, test_labels)


def write(digits: Digits, folder: Path) -> None:
    """Writes digits.npz (calibration, a piece of the train part, no labels) and digits_test.npz (test part, labels)."""
    np.savez_compressed(folder / "digits.npz", input=digits.train[:CALIBRATION_SAMPLES])
    np.savez_compressed(folder / "digits_test.npz", input=digits.test, labels=digits.test_labels)


def make_deterministic() -> None:
    """Makes everything that follows give the same bits again: one seed, one thread, no racing kernels."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def train(net: nn.Module, digits: Digits, epochs: int = 40, batch: int = 64, rate: float = 3e-3) -> nn.Module:
    """Returns `net`, trained (AdamW, learning rate in one cycle up to `rate` and down) and in evaluation mode."""
    pictures, labels = torch.from_numpy(digits.train), torch.from_numpy(digits.train_labels)
    steps = epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    net.train()
    for _ in range(epochs):
        # The last, incomplete batch is dropped: BatchNormalization's statistics would be poor on it.
        for chosen in torch.split(torch.randperm(len(pictures)), batch)[: len(pictures) // batch]:
            loss = nn.functional.cross_entropy(net(pictures[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()
