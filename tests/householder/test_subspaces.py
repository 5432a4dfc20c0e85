"""Laws of reserved subspaces, commutators and principal angles."""

import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder import chain_matrix, subspaces
from hra_diffusion.householder.commutator import principal_angles, relate
from hra_diffusion.householder.geodesic import log_orthogonal
from hra_diffusion.householder.subspaces import Slot, Subspace, orthonormal_basis, slot_basis


def columns(d: int, r: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(slot: Slot, d: int) -> set[int]:
    return set(range(*slot.block(d)))


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return (a - b).abs().max().item() < tolerance


@settings(max_examples=25, deadline=None)
@given(d=st.integers(4, 60), n=st.integers(2, 4))
def test_the_slots_together_are_one_orthonormal_basis(d, n):
    basis = torch.cat([slot_basis(d, Slot(i, n), torch.float64) for i in range(1, n + 1)], dim=1)
    assert near(basis.mT @ basis, torch.eye(d, dtype=basis.dtype))


def test_the_basis_never_changes():
    """Adapters of several machines and years have to stay orthogonal."""
    basis = slot_basis(5, Slot(2, 2), torch.float64)
    expected = [
        [0.601500955007546, 0.195439507584855],
        [0.371748034460185, -0.511667273601693],
        [-0.0, -0.632455532033676],
        [-0.371748034460184, -0.511667273601693],
        [0.601500955007546, -0.195439507584855],
    ]
    assert near(basis[:, :2], torch.tensor(expected, dtype=torch.float64))


def test_slots_of_every_size_mix_all_inputs():
    basis = slot_basis(320, Slot(1, 4), torch.float64)
    shares = basis.square().sum(dim=1)
    assert shares.max() < 2 * shares.mean()


def test_chains_of_different_slots_commute_and_their_updates_add():
    a, b = (Subspace.make(40, Slot(i, 3)).project(columns(40, 4, i).float()) for i in (1, 3))
    A, B, eye = chain_matrix(a.double()), chain_matrix(b.double()), torch.eye(40, dtype=torch.float64)
    assert near(A @ B, B @ A, 1e-6)
    assert near(A @ B - eye, (A - eye) + (B - eye), 1e-6)
    assert not near(A, eye, 0.1)


def test_a_complement_is_orthogonal_to_the_columns_also_within_a_slot():
    others = columns(40, 4)
    for slot in (None, Slot(2, 2)):
        subspace = Subspace.make(40, slot, others)
        assert subspace.size(40) == (36 if slot is None else 16)
        projected = subspace.project(columns(40, 6, 1).float())
        assert near(projected.double().mT @ (others / others.norm(dim=0)), torch.zeros(6, 4).double(), 3e-6)
        assert near(subspace.project(projected), projected, 3e-6)
        if slot:
            assert near(slot_basis(40, Slot(1, 2)).mT @ projected, torch.zeros(20, 6), 3e-6)


def test_columns_of_another_slot_exclude_nothing():
    others = Subspace.make(40, Slot(1, 2)).project(columns(40, 4).float())
    assert Subspace.make(40, Slot(2, 2), others).size(40) == 20


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/1", "a/b", "1/2/3", "-1/2", "1/99999"])
def test_a_wrong_slot_is_refused(text):
    with pytest.raises(ConfigError, match=r"--slot is .*: write i/n"):
        Slot.parse(text)


def test_slots_overlap_where_their_blocks_do():
    assert Slot.parse(" 2/4 ") == Slot(2, 4)
    slots = [Slot(i, n) for n in (2, 3, 4, 5) for i in range(1, n + 1)]
    for one in slots:
        for other in slots:
            assert one.overlaps(other) == bool(vectors(one, 60) & vectors(other, 60))
            if not one.overlaps(other):
                assert all(not vectors(one, d) & vectors(other, d) for d in range(4, 60))


def test_a_basis_ignores_zero_and_equal_columns():
    U = columns(10, 3)
    repeated = torch.cat([U, U[:, :2] * 3, torch.zeros(10, 2, dtype=U.dtype)], dim=1)
    Q = orthonormal_basis(repeated)
    assert Q.shape == (10, 3)
    assert near(Q @ (Q.mT @ U), U)
    assert orthonormal_basis(torch.zeros(10, 2)).shape == (10, 0)


def test_the_commutator_is_that_of_the_dense_logarithms():
    a, b = columns(9, 4, 1), columns(9, 2, 2)
    A, B = log_orthogonal(chain_matrix(a)), log_orthogonal(chain_matrix(b))
    relation = relate(a, b)
    assert relation.commutator.item() == pytest.approx((A @ B - B @ A).norm().item())
    assert relation.inner.item() == pytest.approx((A * B).sum().item())
    assert relation.norms.tolist() == pytest.approx([A.norm().item(), B.norm().item()])


def test_a_batch_is_related_layer_by_layer():
    a, b = (torch.stack([columns(9, 4, seed + shift) for seed in range(3)]) for shift in (0, 5))
    together = relate(a, b)
    for i in range(3):
        assert together.commutator[i].item() == pytest.approx(relate(a[i], b[i]).commutator.item())


def test_a_chain_commutes_with_itself_and_has_no_angles_to_itself():
    a = columns(9, 4)
    relation = relate(a, a)
    assert relation.commutator < 1e-12
    assert (relation.inner / relation.norms.prod(dim=0)).item() == pytest.approx(1)
    assert principal_angles(a, a).max() < 1e-6


def test_principal_angles_are_those_of_planes():
    e = torch.eye(5, dtype=torch.float64)
    a = e[:, :2]
    b = torch.stack([e[0], math.cos(0.4) * e[1] + math.sin(0.4) * e[2]], dim=1)
    assert principal_angles(a, b).tolist() == pytest.approx([0, 0.4], abs=1e-7)
    assert principal_angles(a, e[:, 3:]).tolist() == pytest.approx([math.pi / 2] * 2)


def test_unused_bases_are_forgotten_and_used_ones_are_shared(monkeypatch):
    monkeypatch.setattr(subspaces, "_kept", {})
    monkeypatch.setattr(subspaces, "_MOST_BYTES", 3 * 40 * 20 * 4)
    used = Subspace.make(40, Slot(1, 2))
    again = Subspace.make(40, Slot(1, 2))
    assert again.slot is used.slot
    for d in range(30, 40):
        slot_basis(d, Slot(1, 2))
    assert sum(basis.nbytes for basis in subspaces._kept.values()) <= subspaces._MOST_BYTES
    assert (30, Slot(1, 2), torch.float32) not in subspaces._used
    known = subspaces._used.keys()
    assert (40, Slot(1, 2), torch.float32) in known
    del used, again
    gc.collect()
    assert (40, Slot(1, 2), torch.float32) not in known
