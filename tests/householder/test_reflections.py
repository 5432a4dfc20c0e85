"""Laws of the chain, its compact form and the training kernel, in float64 except where precision matters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hra_diffusion.householder import chain_apply, chain_matrix, factor, paired_columns, random_columns, reflect
from hra_diffusion.householder.chain import unit_columns
from hra_diffusion.householder.compact_wy import orthonormal_delta
from hra_diffusion.householder.factoring import factor_chains
from hra_diffusion.householder.geodesic import blend
from hra_diffusion.householder.reflection import reflect_factored

SIZES = [(1, 1), (5, 1), (6, 2), (7, 3), (16, 8), (12, 12), (6, 9)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def columns(d: int, r: int, seed: int = 0) -> torch.Tensor:
    lengths = torch.rand(r, generator=seeded(seed + 1), dtype=torch.float64) * 3 + 0.1
    return torch.randn(d, r, generator=seeded(seed), dtype=torch.float64) * lengths


def dense(chain) -> torch.Tensor:
    U, T = (part.to(chain.T.dtype) for part in chain)
    return torch.eye(len(U), dtype=T.dtype) - U @ T @ U.mT


@pytest.mark.parametrize(("d", "r"), SIZES)
def test_the_compact_form_is_the_product_of_the_reflections(d, r):
    U = columns(d, r)
    assert (dense(factor(U)) - chain_matrix(U)).abs().max() < 1e-12


@pytest.mark.parametrize(("d", "r"), SIZES)
def test_the_chain_is_orthogonal_with_the_determinant_of_its_parity(d, r):
    H = dense(factor(columns(d, r)))
    assert (H.mT @ H - torch.eye(d, dtype=H.dtype)).abs().max() < 1e-12
    assert torch.linalg.det(H).item() == pytest.approx((-1) ** r)


def test_the_inverse_undoes_the_chain():
    chain = factor(columns(9, 4))
    x = torch.randn(3, 9, generator=seeded(), dtype=torch.float64)
    assert (chain.inverse().apply(chain.apply(x)) - x).abs().max() < 1e-13


def test_the_low_rank_delta_is_the_change_of_the_weight():
    U, W = columns(9, 4), torch.randn(5, 9, generator=seeded(), dtype=torch.float64)
    B, A = factor(U).low_rank_delta(W)
    assert B.shape == (5, 4)
    assert A.shape == (4, 9)
    assert (W + B @ A - W @ chain_matrix(U)).abs().max() < 1e-12
    assert (factor(U).rotate_weight(W) - W @ chain_matrix(U)).abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 24), r=st.integers(1, 12), n=st.integers(0, 9), seed=st.integers(0, 10**6))
def test_values_and_gradients_of_the_kernel_equal_the_naive_chain(d, r, n, seed):
    u = columns(d, r, seed).requires_grad_()
    x = torch.randn(2, n, d, generator=seeded(seed), dtype=torch.float64).requires_grad_()
    upstream = torch.randn(2, n, d, generator=seeded(seed + 2), dtype=torch.float64)
    naive, fast, twin = chain_apply(x, u), reflect(x, u), factor(u).apply(x)
    assert torch.allclose(fast, naive, rtol=0, atol=1e-10)
    assert torch.allclose(twin, naive, rtol=0, atol=1e-10)
    expected = torch.autograd.grad(naive, (x, u), upstream)
    for output in (fast, twin):
        for mine, theirs in zip(torch.autograd.grad(output, (x, u), upstream), expected, strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)


def test_images_keep_their_memory_format_and_their_values():
    u = columns(6, 4).requires_grad_()
    image = torch.randn(2, 6, 3, 5, generator=seeded(), dtype=torch.float64)
    upstream = torch.randn(2, 6, 3, 5, generator=seeded(1), dtype=torch.float64)
    expected = None
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for upstream_format in (torch.contiguous_format, torch.channels_last):
            x = image.to(memory_format=memory_format).requires_grad_()
            y = reflect(x.flatten(2).mT, u).mT.unflatten(2, (3, 5))
            assert y.is_contiguous(memory_format=memory_format)
            results = [y, *torch.autograd.grad(y, (x, u), upstream.to(memory_format=upstream_format))]
            expected = expected or results
            assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(results, expected, strict=True))


def test_a_given_factorization_gives_the_same_values():
    u, x = columns(8, 4), torch.randn(3, 8, generator=seeded(), dtype=torch.float64)
    assert torch.equal(reflect_factored(x, factor_chains([u], x.dtype)[0]), reflect(x, u))


def test_factoring_a_batch_equals_factoring_single_chains():
    stack = torch.stack([columns(8, 4, seed) for seed in range(3)])
    for alone, U, T in zip(stack, *factor(stack), strict=True):
        assert torch.allclose(factor(alone).U, U)
        assert torch.allclose(factor(alone).T, T)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_zero_column_is_the_identity_and_has_no_gradient(zero):
    u = columns(8, 4)
    u[:, zero] = 0
    others = u[:, [i for i in range(4) if i != zero]]
    u.requires_grad_()
    x = torch.randn(5, 8, generator=seeded(), dtype=torch.float64)
    y = reflect(x, u)
    assert torch.allclose(y, chain_apply(x, others))
    y.square().mean().add(y.sum()).backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert u.grad[:, zero].eq(0).all()


def test_the_gradient_is_orthogonal_to_the_columns():
    u = columns(12, 6).requires_grad_()
    reflect(torch.randn(5, 12, generator=seeded(), dtype=torch.float64), u).sin().sum().backward()
    assert (u.grad * u).sum(dim=0).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15])
def test_the_length_of_a_column_does_not_matter(scale):
    u = columns(8, 4).float()
    x = torch.randn(3, 8, generator=seeded())
    assert torch.allclose(reflect(x, u * scale), reflect(x, u), atol=1e-5)


@pytest.mark.parametrize("r", [2, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_chain_of_a_low_precision_model_is_orthogonal(dtype, r):
    H = dense(factor(columns(96, r).float(), dtype)).double()
    assert (H.mT @ H - torch.eye(96)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype):
    u = columns(32, 8).float()
    x = torch.randn(6, 32, generator=seeded())
    low = reflect(x.to(dtype), u)
    assert low.dtype == dtype
    assert (low.float() - reflect(x, u)).abs().max() < 0.05


def test_autocasting_does_not_change_the_factorization():
    u, x = columns(32, 8).float().requires_grad_(), torch.randn(6, 32, generator=seeded())
    expected = reflect(x, u)
    (expected_grad,) = torch.autograd.grad(expected.square().sum() + expected.sum(), u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reflect(x, u)
        (grad,) = torch.autograd.grad(inside.square().sum() + inside.sum(), u)
    assert torch.equal(inside, expected)
    assert torch.equal(grad, expected_grad)


def test_an_even_start_is_the_identity_with_a_gradient():
    u = paired_columns(16, 8, generator=seeded()).double().requires_grad_()
    x = torch.randn(4, 16, generator=seeded(), dtype=torch.float64)
    y = reflect(x, u)
    assert (y - x).abs().max() < 1e-14
    y.sin().sum().backward()
    assert u.grad is not None
    assert (u.grad.norm(dim=0) > 1e-3).all()


def test_an_odd_start_is_one_reflection():
    u = paired_columns(16, 3, generator=seeded())
    assert u.shape == (16, 3)
    assert torch.linalg.det(chain_matrix(u.double())).item() == pytest.approx(-1)


def test_starts_are_reproducible_have_length_root_d_and_do_not_use_the_global_generator():
    state = torch.get_rng_state()
    first, second = (random_columns(64, 5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first.norm(dim=0), torch.full((5,), 8.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_starts_and_powers_are_independent_of_torch_s_defaults():
    expected = random_columns(9, 4, generator=seeded())
    half = blend([expected], [0.5])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert torch.equal(random_columns(9, 4, generator=seeded()), expected)
            assert torch.equal(blend([expected], [0.5]), half)
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_adam_step_rotates_a_column_by_about_the_learning_rate_in_radians():
    for d, r in [(64, 2), (1024, 8)]:
        u = torch.nn.Parameter(paired_columns(d, r, generator=seeded()))
        before = unit_columns(u.detach().clone())
        optimizer = torch.optim.Adam([u], lr=1e-2)
        reflect(torch.randn(32, d, generator=seeded()), u).sin().sum().backward()
        optimizer.step()
        turned = torch.arccos((before * unit_columns(u.detach())).sum(dim=0).clamp(max=1))
        assert torch.allclose(turned, torch.full((r,), 1e-2), rtol=0.15)


def test_the_product_of_the_orthonormal_factors_is_the_update():
    U = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U[:, 2] = 0
    W = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    B, A = orthonormal_delta(U, W)
    assert torch.allclose(A @ A.mT, torch.eye(4, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(B @ A, W @ chain_matrix(U) - W, rtol=0, atol=1e-13)


def test_gradients_from_the_output_equal_those_from_the_input():
    u, x = columns(9, 5).requires_grad_(), torch.randn(2, 7, 9, generator=seeded(), dtype=torch.float64)
    x.requires_grad_()
    upstream = torch.randn(2, 7, 9, generator=seeded(1), dtype=torch.float64)
    expected = torch.autograd.grad(reflect(x, u), (x, u), upstream)
    for mine, theirs in zip(
        torch.autograd.grad(reflect(x, u, output_is_kept=True), (x, u), upstream), expected, strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-13)


def kept_by_autograd(run) -> int:
    """Return the bytes that the graph of the result of `run` keeps, counting every storage once."""
    storages: dict[int, int] = {}
    seen, nodes = set(), [run().grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [previous for previous, _ in node.next_functions]
        saved = getattr(node, "saved_tensors", ()) or ()
        saved = [*saved, *(getattr(node, name) for name in dir(node) if name.startswith("_saved_"))]
        for tensor in saved:
            if isinstance(tensor, torch.Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def test_autograd_keeps_no_product_beside_its_factors():
    a, b = (torch.randn(64, 32, generator=seeded(seed)).requires_grad_() for seed in range(2))
    u = paired_columns(32, 2, generator=seeded()).requires_grad_()
    alone = kept_by_autograd(lambda: a * b)
    kept = kept_by_autograd(lambda: reflect(a * b, u))
    kept_of_sum = kept_by_autograd(lambda: reflect(a * b + 0, u))
    assert kept - alone < a.nbytes / 2
    assert kept_of_sum - alone > a.nbytes


def normalized(seed: int, affine: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of different means and deviations, and their layer normalization."""
    a = torch.randn(2, 64, 32, generator=seeded(seed)) * torch.rand(64, 1, generator=seeded(seed + 1)) + 0.3
    weight, bias = torch.randn(2, 32, generator=seeded(seed + 2)).to(dtype) if affine else (None, None)
    a = a.to(dtype).requires_grad_()
    return a, torch.nn.functional.layer_norm(a, (32,), weight, bias)


def test_autograd_keeps_no_layer_normalization_beside_its_input():
    u = paired_columns(32, 2, generator=seeded()).requires_grad_()
    alone = kept_by_autograd(lambda: normalized(0, True, torch.float32)[1])
    kept = kept_by_autograd(lambda: reflect(normalized(0, True, torch.float32)[1], u))
    assert kept - alone < 2 * 64 * 32 * 4 / 2
    alone = kept_by_autograd(lambda: normalized(0, True, torch.float32)[1].bfloat16())
    kept = kept_by_autograd(lambda: reflect(normalized(0, True, torch.float32)[1].bfloat16(), u))
    assert kept - alone < 2 * 64 * 32 * 2 / 2


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_normalized_rows_have_the_gradient_of_their_values(dtype, accuracy, affine):
    u = columns(32, 4).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    a, x = normalized(0, affine, dtype)
    upstream = torch.randn(x.shape, generator=seeded(9)).to(dtype)
    expected_a, expected = torch.autograd.grad(reflect(x + 0, u), (a, u), upstream, retain_graph=True)
    mine_a, mine = torch.autograd.grad(reflect(x, u), (a, u), upstream)
    assert torch.equal(mine_a, expected_a)
    assert (mine - expected).norm() < accuracy * expected.norm()


def test_gradients_are_accurate_for_normalized_rows_with_a_large_mean():
    u = columns(32, 4).float().requires_grad_()
    a = (torch.randn(4, 64, 32, generator=seeded()) + 30).bfloat16().requires_grad_()
    x = torch.nn.functional.layer_norm(a, (32,))
    upstream = torch.randn(x.shape, generator=seeded(9)).bfloat16()
    (expected,) = torch.autograd.grad(reflect(x.detach(), u), u, upstream)
    (mine,) = torch.autograd.grad(reflect(x, u), u, upstream)
    assert (mine - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("make", [lambda a: torch.nn.functional.layer_norm(a, (32,)), lambda a: a.sigmoid() * a.tanh()])
def test_gradients_are_accurate_through_a_cast(make):
    """Autocasting on CUDA inserts such a cast."""
    u = columns(32, 4).float().requires_grad_()
    a = torch.randn(2, 64, 32, generator=seeded()).requires_grad_()
    x = make(a)
    upstream = torch.randn(x.shape, generator=seeded(9)).bfloat16()
    (expected,) = torch.autograd.grad(reflect(x.detach().bfloat16(), u), u, upstream)
    (mine,) = torch.autograd.grad(reflect(x.bfloat16(), u), u, upstream)
    assert (mine - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("scale", [3.0, torch.tensor(3.0), torch.full((1, 6), 3.0)])
def test_products_of_every_kind_have_the_gradient_of_their_values(scale):
    u, x = columns(6, 4).float().requires_grad_(), torch.randn(5, 6, generator=seeded()).requires_grad_()
    y = x * scale
    (expected,) = torch.autograd.grad(reflect(y.detach(), u).sin().sum(), u)
    assert torch.allclose(torch.autograd.grad(reflect(y, u).sin().sum(), u)[0], expected)
    z = x.sigmoid() * x.tanh()
    (expected,) = torch.autograd.grad(reflect(z.detach(), u).sin().sum(), u)
    assert torch.allclose(torch.autograd.grad(reflect(z, u).sin().sum(), u)[0], expected)


def test_products_under_saved_tensor_hooks_have_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    u, x = columns(6, 4).float().requires_grad_(), torch.randn(5, 6, generator=seeded()).requires_grad_()

    def gated(x):
        return reflect(x.sigmoid() * x.tanh(), u).sin().sum()

    (expected,) = torch.autograd.grad(gated(x), u)
    assert torch.equal(torch.autograd.grad(checkpoint(gated, x, use_reentrant=False), u)[0], expected)
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(torch.autograd.grad(gated(x), u)[0], expected)
