"""Apple's MPS device has no float64 and no QR factorization: a tensor that pretends to be there refuses them, too."""

import pytest
import torch

from hra_diffusion.householder.geodesic import blend, rotation_angles
from hra_diffusion.householder.gram_schmidt import orthogonality_penalty, orthonormal_columns
from hra_diffusion.householder.reflection import reflect

DEVICE = torch.device("mps", 0)
MISSING = (torch.linalg.qr, torch.linalg.eig, torch.linalg.eigvals, torch.linalg.eigh, torch.linalg.svd)


class OnMps(torch.Tensor):
    """A tensor of the CPU that names MPS as its device, and refuses what MPS refuses."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function == torch.Tensor.device.__get__:
            return DEVICE
        if function in MISSING:
            raise NotImplementedError(f"{function.__name__} is not implemented for the MPS device")
        if function == torch.Tensor.cpu:
            return arguments[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(function, types, arguments, keywords)
        if isinstance(result, cls) and result.as_subclass(torch.Tensor).dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return result


def test_the_pretended_device_refuses_what_mps_refuses():
    with pytest.raises(NotImplementedError, match="qr is not implemented"):
        torch.linalg.qr(torch.randn(4, 2).as_subclass(OnMps))
    with pytest.raises(TypeError, match="float64"):
        torch.randn(4, 2).as_subclass(OnMps).double()


@pytest.fixture
def mps(monkeypatch):
    """Make ``tensor.to(DEVICE)`` and ``torch.eye(…, device=DEVICE)`` pretend."""
    to, eye = torch.Tensor.to, torch.eye

    def pretend(tensor, *arguments, **keywords):
        rest = [argument for argument in arguments if argument != DEVICE]
        return (to(tensor, *rest, **keywords) if rest else tensor).as_subclass(
            OnMps if len(rest) < len(arguments) or isinstance(tensor, OnMps) else torch.Tensor
        )

    monkeypatch.setattr(torch.Tensor, "to", pretend)
    monkeypatch.setattr(torch, "eye", lambda n, *, dtype, device: eye(n, dtype=dtype).to(device))


def run(function, *shapes: tuple[int, ...], like: type[torch.Tensor]) -> list[torch.Tensor]:
    """Return a function's value and gradients."""
    leaves = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for shape in shapes]
    value = function(*(leaf.as_subclass(like) for leaf in leaves))
    if value.requires_grad:
        value.square().sum().backward()
    return [value.detach().as_subclass(torch.Tensor), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda U: orthonormal_columns(U) * torch.arange(4), [(6, 4)]),
        (orthogonality_penalty, [(6, 4)]),
        (reflect, [(3, 6), (6, 4)]),
        (lambda x, U: reflect(x, orthonormal_columns(U)), [(3, 6), (6, 4)]),
        (lambda U: blend([U, U], [0.5, 0.7]), [(6, 4)]),
        (rotation_angles, [(6, 4)]),
    ],
    ids=["Gram-Schmidt", "penalty", "kernel", "kernel of Gram-Schmidt", "strength", "angles"],
)
def test_values_and_gradients_on_mps_equal_those_on_the_cpu(function, shapes, mps):
    on_cpu = run(function, *shapes, like=torch.Tensor)
    for result, expected in zip(run(function, *shapes, like=OnMps), on_cpu, strict=True):
        torch.testing.assert_close(result, expected)
