"""The mean rotation angle from a trace: the root mean square of sin(θ/2) over the planes of the rotation."""

import math

import pytest
import torch

from hra_diffusion.householder import chain_matrix, paired_columns
from hra_diffusion.householder.geodesic import rotation_angles
from hra_diffusion.householder.mean_angle import mean_angle, sine_squares


@pytest.mark.parametrize(("d", "r"), [(6, 2), (12, 4), (12, 8), (5, 3), (4, 6)])
def test_the_sum_is_that_of_the_rotation_s_planes_and_of_the_dense_trace(d, r):
    columns = torch.randn(3, d, r, dtype=torch.float64)
    sums = sine_squares(columns)
    angles = rotation_angles(columns)  # each plane's angle twice, and π once for a mirrored direction
    assert torch.allclose(sums, (2 * (angles / 2).sin().square()).sum(-1))
    traces = torch.stack([torch.trace(torch.eye(d, dtype=torch.float64) - chain_matrix(u)) for u in columns])
    assert torch.allclose(sums, traces)


@pytest.mark.parametrize("degrees", [0.0, 1.0, 30.0, 90.0, 180.0])
def test_a_chain_that_turns_each_of_its_planes_by_one_angle_has_this_mean(degrees):
    half = math.radians(degrees) / 2  # two reflections whose columns are half the angle apart
    pair = torch.tensor([[1.0, math.cos(half)], [0.0, math.sin(half)]], dtype=torch.float64)
    columns = torch.block_diag(pair, pair, torch.zeros(3, 0, dtype=torch.float64))
    assert torch.rad2deg(mean_angle(sine_squares(columns) / 2)).item() == pytest.approx(degrees, abs=1e-6)


def test_a_paired_start_has_an_angle_of_rounding_errors_alone():
    columns = paired_columns(320, 8)
    assert 0 <= torch.rad2deg(mean_angle(sine_squares(columns) / 4)).item() < 0.1
