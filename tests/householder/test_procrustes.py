"""Laws of the nearest chain: exact for rotations, optimal in its subspace, and globally optimal for isometries."""

import pytest
import torch

from hra_diffusion.householder import chain_matrix
from hra_diffusion.householder.compact_wy import orthonormal_delta
from hra_diffusion.householder.procrustes import nearest_chain


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(W, B, A, H) -> float:
    return torch.linalg.matrix_norm(W @ H - W - B @ A).item()


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (3, 12)])
def test_the_nearest_chain_to_the_lora_of_a_chain_has_its_weights(shape):
    W, U = random(*shape), random(shape[1], 4, seed=1)
    B, A = orthonormal_delta(U, W)
    columns, residual = nearest_chain(W, B, A)
    assert residual < 1e-9
    assert torch.allclose(W @ chain_matrix(columns), W @ chain_matrix(U), rtol=0, atol=1e-9)


def test_the_residual_is_the_distance_and_the_chain_is_a_rotation():
    W, B, A = random(7, 12), random(7, 3, seed=1), random(3, 12, seed=2)
    columns, residual = nearest_chain(W, B, A)
    H = chain_matrix(columns)
    assert columns.shape == (12, 6)
    assert loss(W, B, A, H) == pytest.approx(residual.item(), abs=1e-12)
    assert torch.linalg.det(H).item() == pytest.approx(1)


def test_no_rotation_nearby_is_better_in_the_subspace():
    W, B, A = random(7, 12), random(7, 2, seed=1), random(2, 12, seed=2)
    columns, residual = nearest_chain(W, B, A)
    H = chain_matrix(columns)
    Q = torch.linalg.qr(torch.cat([A.mT, W.mT @ B], dim=1)).Q
    for seed in range(20):
        S = random(4, 4, seed=seed)
        turn = Q @ torch.linalg.matrix_exp(0.01 * (S - S.mT)) @ Q.mT + torch.eye(12) - Q @ Q.mT
        assert loss(W, B, A, turn @ H) > residual


def test_for_an_isometry_the_chain_is_the_best_orthogonal_matrix():
    W = torch.linalg.qr(random(14, 12)).Q
    B, A = 0.1 * random(14, 2, seed=1), random(2, 12, seed=2)
    X, _, Yh = torch.linalg.svd(W.mT @ (W + B @ A))
    _, residual = nearest_chain(W, B, A)
    assert residual.item() == pytest.approx(loss(W, B, A, X @ Yh), rel=1e-9)


def test_the_residual_of_a_small_update_of_an_isometry_is_its_symmetric_part():
    W = torch.linalg.qr(random(80, 80)).Q
    B, A = 1e-4 * random(80, 4, seed=1), random(4, 80, seed=2)
    delta = W.mT @ B @ A
    _, residual = nearest_chain(W, B, A)
    assert residual.item() == pytest.approx(torch.linalg.matrix_norm(delta + delta.mT).item() / 2, rel=1e-2)
    assert residual.item() / torch.linalg.matrix_norm(delta).item() == pytest.approx(0.5**0.5, abs=0.05)


def test_the_nearest_chain_to_a_zero_update_is_the_identity():
    columns, residual = nearest_chain(random(5, 9), torch.zeros(5, 2, dtype=torch.float64), random(2, 9))
    assert residual < 1e-12
    assert torch.allclose(chain_matrix(columns), torch.eye(9, dtype=torch.float64), atol=1e-12)
