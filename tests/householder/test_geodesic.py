"""Laws of strength and mean, in float64."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder import chain_matrix, paired_columns
from hra_diffusion.householder.geodesic import blend, log_orthogonal, reflections_of, rotation_angles
from hra_diffusion.householder.gram_schmidt import orthogonality_penalty, orthonormal_columns


def columns(d: int, r: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(*angles: float) -> torch.Tensor:
    blocks = [
        torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64) for a in angles
    ]
    return torch.block_diag(*blocks)


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return (a - b).abs().max().item() < tolerance


@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 20), half=st.integers(1, 5), s=st.floats(-3, 3), seed=st.integers(0, 10**6))
@example(d=2, half=1, s=0.890625, seed=608)
def test_powers_are_orthogonal_and_add_up(d, half, s, seed):
    U = columns(d, 2 * half, seed)
    H, power, rest = chain_matrix(U), chain_matrix(blend([U], [s])), chain_matrix(blend([U], [1 - s]))
    assert near(power.mT @ power, torch.eye(d, dtype=H.dtype))
    # torch.linalg.matrix_exp is off by up to 2.5e-10 for a single matrix with a norm below 0.05, not for a batch.
    assert near(power @ rest, H, 1e-9)
    assert blend([U], [s]).shape == (d, min(d, 2 * half))


@pytest.mark.parametrize("seed", range(5))
def test_strength_0_is_the_identity_and_strength_1_the_chain(seed):
    U = columns(12, 6, seed)
    assert near(chain_matrix(blend([U], [0.0])), torch.eye(12, dtype=U.dtype))
    assert near(chain_matrix(blend([U], [1.0])), chain_matrix(U))


def test_half_the_strength_twice_is_the_whole():
    U = columns(12, 6)
    half = chain_matrix(blend([U], [0.5]))
    assert near(half @ half, chain_matrix(U))


def test_a_small_strength_is_a_small_rotation():
    U = columns(12, 6)
    deviation = chain_matrix(blend([U], [1e-6])) - torch.eye(12, dtype=U.dtype)
    assert 1e-7 < deviation.norm() < 1e-4


def test_a_paired_start_is_the_identity_at_any_strength():
    U = paired_columns(12, 6, generator=torch.Generator().manual_seed(0)).double()
    assert near(chain_matrix(blend([U], [0.7])), torch.eye(12, dtype=U.dtype))


def test_zero_columns_do_not_change_a_blend():
    U = columns(12, 4)
    padded = torch.cat([U, torch.zeros(12, 3, dtype=U.dtype)], dim=1)
    assert near(chain_matrix(blend([padded], [0.3])), chain_matrix(blend([U], [0.3])))


def test_half_turns_have_strengths():
    U = orthonormal_columns(columns(12, 4))
    half = chain_matrix(blend([U], [0.5]))
    assert near(half.mT @ half, torch.eye(12, dtype=U.dtype))
    assert near(half @ half, chain_matrix(U))


def test_an_odd_number_of_reflections_is_refused():
    with pytest.raises(ConfigError, match=r"odd number of reflections .*even rank"):
        blend([columns(8, 3)], [0.5])


@pytest.mark.parametrize(
    "angles", [(0.3,), (0.3, 0.3), (3.1, -1.0), (0.0, 2.0), (math.pi, 0.5), (math.pi, math.pi), (1, 1, 1)]
)
def test_the_logarithm_is_skew_and_its_exponential_is_the_matrix(angles):
    basis = orthonormal_columns(columns(2 * len(angles), 2 * len(angles)))
    K = basis @ rotation(*angles) @ basis.mT
    L = log_orthogonal(K)
    assert near(L, -L.mT, 1e-15)
    assert near(torch.linalg.matrix_exp(L), K, 1e-7 if math.pi in angles else 1e-12)
    expected = sorted(min(abs(a), 2 * math.pi - abs(a)) for a in angles for _ in range(2))
    assert near(torch.linalg.eigvals(L).imag.abs().sort().values, torch.tensor(expected, dtype=L.dtype), 1e-7)


def test_every_orthogonal_matrix_is_a_chain():
    for K in (
        rotation(0.4, 2.0),
        torch.diag(torch.tensor([1.0, -1, -1, 1])).double(),
        orthonormal_columns(columns(5, 5)),
    ):
        assert near(chain_matrix(reflections_of(K)), K)


def test_the_mean_is_independent_of_order_and_a_single_strength_gives_its_chain():
    a, b = columns(12, 4, 1), columns(12, 2, 2)
    assert near(chain_matrix(blend([a, b], [0.7, 0.4])), chain_matrix(blend([b, a], [0.4, 0.7])))
    assert near(chain_matrix(blend([a, b], [1.0, 0.0])), chain_matrix(a))
    assert near(chain_matrix(blend([a, b], [0.0, 1.0])), chain_matrix(b))
    assert blend([a, b], [0.7, 0.4]).shape == (12, 6)


def test_the_mean_of_chains_in_separate_planes_is_their_product():
    basis = orthonormal_columns(columns(8, 8))
    a, b = basis[:, :4] @ columns(4, 2, 1), basis[:, 4:] @ columns(4, 2, 2)
    assert near(chain_matrix(blend([a, b], [1.0, 1.0])), chain_matrix(a) @ chain_matrix(b))


def test_blending_a_batch_equals_blending_single_layers():
    stack = torch.stack([columns(10, 4, seed) for seed in range(3)])
    for alone, together in zip(stack, blend([stack], [0.6]), strict=True):
        assert near(chain_matrix(blend([alone], [0.6])), chain_matrix(together))


def test_a_blend_has_the_dtype_of_the_columns():
    assert blend([columns(8, 4).float()], [0.5]).dtype == torch.float32


def test_an_anchored_chain_starts_at_the_identity():
    Q = orthonormal_columns(columns(10, 4))
    assert near(chain_matrix(torch.cat([Q, Q], dim=1)), torch.eye(10, dtype=Q.dtype))


def test_gram_schmidt_gives_the_projector_of_the_span_and_its_gradients():
    U = columns(10, 4).requires_grad_()
    Q = orthonormal_columns(U)
    assert near(Q.mT @ Q, torch.eye(4, dtype=U.dtype))
    assert near(Q @ Q.mT @ U, U)
    assert torch.autograd.gradcheck(lambda u: orthonormal_columns(u) @ orthonormal_columns(u).mT, U)


def test_the_penalty_is_the_distance_of_the_gram_matrix_from_the_identity():
    U = columns(10, 4)
    unit = U / U.norm(dim=0)
    assert near(orthogonality_penalty(U), (torch.eye(4, dtype=U.dtype) - unit.mT @ unit).norm())
    assert orthogonality_penalty(orthonormal_columns(U)) < 1e-14
    pairs = U[:, :1].expand(10, 2)
    assert orthogonality_penalty(pairs).item() == pytest.approx(math.sqrt(2))


def test_the_penalty_has_a_gradient_everywhere_and_ignores_padding():
    U = torch.cat([columns(10, 4), torch.zeros(10, 2, dtype=torch.float64)], dim=1).requires_grad_()
    penalty = orthogonality_penalty(U)
    assert near(penalty, orthogonality_penalty(U[:, :4]))
    for value in (penalty, orthogonality_penalty(orthonormal_columns(U[:, :4]))):
        (gradient,) = torch.autograd.grad(value, U)
        assert gradient.isfinite().all()


def test_rotation_angles_are_those_of_the_rotation():
    K = rotation(0.3, -1.2, 3.0)
    angles = rotation_angles(reflections_of(K))
    assert near(angles, torch.tensor([3.0, 3.0, 1.2, 1.2, 0.3, 0.3], dtype=K.dtype), 1e-9)


def test_a_paired_start_has_no_rotation_angles_and_an_odd_chain_has_a_mirror():
    assert rotation_angles(paired_columns(12, 6)).abs().max() < 1e-6
    assert rotation_angles(columns(12, 3))[0].item() == pytest.approx(math.pi)


def test_rotation_angles_of_a_batch_equal_those_of_single_layers():
    batch = torch.stack([columns(9, 4, seed) for seed in range(3)])
    assert near(rotation_angles(batch), torch.stack([rotation_angles(columns) for columns in batch]))
