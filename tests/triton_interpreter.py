"""Triton's interpreter on the CPU for the fused kernels of hra_diffusion.householder."""

import pytest


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernels in Triton's interpreter. It gets what it lacks: the matrix product of bfloat16.

    Interpreted functions of Triton itself would leave it patched for the interpreter: they are replaced by plain ones.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    from hra_diffusion.householder import triton_kernels, triton_launches

    for module in (triton_launches, triton_kernels):
        for name, function in list(vars(module).items()):
            if name.endswith("_kernel") or name == "load_tile":
                monkeypatch.setattr(module, name, InterpretedFunction(function.fn))
    monkeypatch.setattr(tl, "zeros", lambda shape, dtype: tl.full(shape, 0, dtype))
    monkeypatch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
    multiply = InterpreterBuilder.create_dot

    def create_dot(builder, a, b, *others):
        a, b = (builder.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return multiply(builder, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
