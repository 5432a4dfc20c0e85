"""Laws of planes and of interpolation, in float64."""

import itertools
import math

import pytest
import torch

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder import chain_matrix, paired_columns
from hra_diffusion.householder.geodesic import blend, interpolate, log_orthogonal, rotation_angles
from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.householder.planes import rotation_planes, squared_norms


def columns(d: int, r: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return (a - b).abs().max().item() < tolerance


def by_turns(*angles: float, d: int = 12) -> torch.Tensor:
    """Columns that rotate orthogonal random planes by angles."""
    basis = orthonormal_columns(columns(d, 2 * len(angles), 5))
    pairs = []
    for x, y, angle in zip(basis.mT[::2], basis.mT[1::2], angles, strict=True):
        pairs += [x, math.cos(angle / 2) * x + math.sin(angle / 2) * y]
    return torch.stack(pairs, dim=1)


@pytest.mark.parametrize(
    "U",
    [
        columns(12, 6),
        columns(3, 6),
        columns(5, 5 + 1),
        by_turns(0.3, 0.3, 2.0),
        by_turns(math.pi, 0.5),
        by_turns(math.pi, math.pi, 1e-9),
        paired_columns(12, 6, generator=torch.Generator().manual_seed(0)).double(),
        torch.cat([columns(12, 4), torch.zeros(12, 4, dtype=torch.float64)], dim=1),
        orthonormal_columns(columns(12, 4)),
    ],
    ids=["random", "short", "odd width", "equal", "half", "halves", "identity", "padded", "orthonormal"],
)
def test_the_planes_together_are_the_chain(U):
    pairs, angles = rotation_planes(U)
    assert near(chain_matrix(pairs), chain_matrix(U), 1e-7)
    assert angles.tolist() == sorted(angles.tolist(), reverse=True)
    assert near(angles, rotation_angles(U)[: 2 * len(angles) : 2], 1e-6)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_dropping_planes_has_the_stated_error_which_is_the_least(kept):
    U = columns(12, 6)
    H, eye = chain_matrix(U), torch.eye(12, dtype=U.dtype)
    pairs, angles = rotation_planes(U)
    error = (chain_matrix(pairs[:, : 2 * kept]) - H).norm()
    assert error.square().item() == pytest.approx(squared_norms(angles[kept:]).sum().item(), abs=1e-12)
    assert error.item() == pytest.approx(torch.linalg.svdvals(H - eye)[2 * kept :].norm().item(), abs=1e-12)
    assert squared_norms(angles).sum().item() == pytest.approx((H - eye).square().sum().item())


def test_planes_of_a_batch_are_those_of_single_chains():
    stack = torch.stack([columns(10, 4, seed) for seed in range(3)])
    pairs, angles = rotation_planes(stack)
    for i, U in enumerate(stack):
        assert near(chain_matrix(pairs[i]), chain_matrix(U))
        assert near(angles[i], rotation_planes(U)[1])


def test_an_odd_chain_has_no_planes():
    with pytest.raises(ConfigError, match="odd number of reflections"):
        rotation_planes(columns(8, 3))


def test_interpolation_starts_at_the_first_chain_and_ends_at_the_second():
    a, b = columns(12, 4, 1), columns(12, 2, 2)
    A, B = chain_matrix(a), chain_matrix(b)
    assert near(chain_matrix(interpolate(a, b, 0.0)), A)
    assert near(chain_matrix(interpolate(a, b, 1.0)), B)
    middle = chain_matrix(interpolate(a, b, 0.5))
    assert near(middle, chain_matrix(interpolate(b, a, 0.5)))
    assert near(A @ (A.mT @ middle) @ (A.mT @ middle), B)
    assert interpolate(a, b, 0.5).shape == (12, 6)


def test_interpolation_is_uniform_and_from_the_identity_it_is_the_strength():
    a, b = columns(12, 4, 1), columns(12, 4, 2)
    steps = [chain_matrix(interpolate(a, b, t / 4)) for t in range(5)]
    lengths = [log_orthogonal(one.mT @ other).norm().item() for one, other in itertools.pairwise(steps)]
    assert lengths == pytest.approx([lengths[0]] * 4)
    assert near(chain_matrix(interpolate(a[:, :0], b, 0.3)), chain_matrix(blend([b], [0.3])))
