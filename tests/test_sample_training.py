"""README's main job: the embedded sample is learned, on every seed, by the packaged model."""

from __future__ import annotations

import pytest

import minibert


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_sample_is_learned_to_15_points_above_the_majority(seed, tmp_path):
    run = minibert.finetune("mrpc", sample=True, seed=seed, output_dir=tmp_path / "run")
    assert run.results["accuracy"] >= run.results["majority"]["accuracy"] + 0.15
    assert run.results["beats_majority"]
