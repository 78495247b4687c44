from __future__ import annotations

import torch

from gaussiank_lab.data import DATASETS, ImageShape, Wanted


def test_the_stand_in_has_the_models_shape_and_a_thousand_classes() -> None:
    data = DATASETS["synthetic-images"].load(Wanted(image=ImageShape(3, 40)))
    assert data.outputs == 1000
    assert len(data.train) == 12_800
    batch = data.train.batch(torch.tensor([5, 5 + 64, 12_799]))
    assert batch.inputs[0].shape == (3, 3, 40, 40)
    assert torch.equal(batch.inputs[0][0], batch.inputs[0][1])
    assert batch.targets[0][0] == batch.targets[0][1]
    prepared = data.train.prepare(data.train.batch(torch.arange(64)).inputs)[0]
    assert prepared.mean().abs() < 0.01
    assert abs(prepared.std() - 1) < 0.01
    assert data.digest == DATASETS["synthetic-images"].load(Wanted(image=ImageShape(3, 40))).digest
