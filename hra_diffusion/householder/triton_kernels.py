"""Kernels of the reflection, in Triton.

Rows are n × d for each image (a linear layer has one "image"), with any strides. A program holds a tile of BLOCK_N rows
and reads it twice, in blocks of BLOCK_D numbers: for z = x U, then for the result. The second time it is in the cache.

A backward program adds X qᵀ + Ȳ sᵀ and q sᵀ of its tiles in float32. `add_sums_kernel` adds the programs' sums in a
fixed order. So a resumed run equals an uninterrupted one bit for bit. The columns' padding to R ≥ 16, the smallest
matrix product of the hardware, is masked: no tensor is copied.

Pointers come first among the arguments, then sizes and strides, then constants of the compiler.
"""

# pyright: basic, reportOperatorIssue=false, reportPossiblyUnboundVariable=false, reportAttributeAccessIssue=false
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, rows, columns, row_stride, column_stride, mask):
    """Load a block of a matrix."""
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def reflect_kernel(
    x, U, T, y, s,
    n, d, tiles_per_image,
    x_image, x_row, x_column, y_image, y_row, y_column, U_row, U_column, T_row, T_column,
    r: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Y = X − U s, s = T Uᵀ X for a tile of rows."""
    image = (tl.program_id(0) // tiles_per_image).to(tl.int64)
    start = (tl.program_id(0) % tiles_per_image) * BLOCK_N
    rows = tl.arange(0, BLOCK_N)
    k = tl.arange(0, R)
    in_image = start + rows < n
    x += image * x_image + start.to(tl.int64) * x_row
    y += image * y_image + start.to(tl.int64) * y_row
    s += (image * n + start) * r

    z = tl.zeros((BLOCK_N, R), tl.float32)
    for first in range(0, d, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        X = load_tile(x, rows, columns, x_row, x_column, in_image[:, None] & (columns < d)[None, :])
        u = load_tile(U, columns, k, U_row, U_column, (columns < d)[:, None] & (k < r)[None, :])
        z = tl.dot(X, u, z, input_precision=PRECISION)
    t = load_tile(T, k, k, T_column, T_row, (k < r)[:, None] & (k < r)[None, :])  # transposed
    slim = tl.dot(z, t, input_precision=PRECISION).to(x.dtype.element_ty)
    tl.store(s + rows[:, None] * r + k[None, :], slim, mask=in_image[:, None] & (k < r)[None, :])
    for first in range(0, d, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = in_image[:, None] & (columns < d)[None, :]
        X = load_tile(x, rows, columns, x_row, x_column, inside)
        u = load_tile(U, k, columns, U_column, U_row, (k < r)[:, None] & (columns < d)[None, :])  # transposed
        Y = X.to(tl.float32) - tl.dot(slim, u, input_precision=PRECISION)
        tl.store(y + rows[:, None] * y_row + columns[None, :] * y_column, Y.to(x.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad, U, T, s, a, b, mean, rstd, weight, bias, grad_x, sums,
    n, d, tiles_per_image, tiles,
    grad_image, grad_row, grad_column, a_image, a_row, a_column, b_image, b_row, b_column,
    grad_x_image, grad_x_row, grad_x_column, U_row, U_column, T_row, T_column,
    r: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, IS_OUTPUT: tl.constexpr, MEAN_IS_ROUNDED: tl.constexpr,
):  # fmt: skip
    """X̄ = Ȳ − U q, and a program's sums of X qᵀ + Ȳ sᵀ (transposed) and q sᵀ."""
    dtype = grad.dtype.element_ty
    rows = tl.arange(0, BLOCK_N)
    k = tl.arange(0, R)
    program = tl.program_id(0)
    sums += program.to(tl.int64) * (d + r) * r
    in_M = (k < r)[:, None] & (k < r)[None, :]
    M_target = sums + r * d + k[:, None] * r + k[None, :]
    for tile in range(program, tiles, tl.num_programs(0)):
        image = tl.cast(tile // tiles_per_image, tl.int64)
        is_later = tl.full((1, 1), tile, tl.int32) != program
        start = (tile % tiles_per_image) * BLOCK_N
        in_image = start + rows < n
        flat = image * n + start
        start = tl.cast(start, tl.int64)
        grad_tile = grad + image * grad_image + start * grad_row
        a_tile = a + image * a_image + start * a_row
        if mean is not None:
            row_mean = tl.load(mean + flat + rows, mask=in_image, other=0.0).to(tl.float32)
            row_rstd = tl.load(rstd + flat + rows, mask=in_image, other=0.0).to(tl.float32)
            remaining = tl.zeros((BLOCK_N,), tl.float32)

        p = tl.zeros((BLOCK_N, R), tl.float32)
        for first in range(0, d, BLOCK_D):
            columns = first + tl.arange(0, BLOCK_D)
            inside = in_image[:, None] & (columns < d)[None, :]
            G = load_tile(grad_tile, rows, columns, grad_row, grad_column, inside)
            u = load_tile(U, columns, k, U_row, U_column, (columns < d)[:, None] & (k < r)[None, :])
            p = tl.dot(G, u, p, input_precision=PRECISION)
            if MEAN_IS_ROUNDED:
                A = load_tile(a_tile, rows, columns, a_row, a_column, inside).to(tl.float32)
                remaining += tl.sum(tl.where(inside, A - row_mean[:, None], 0.0), axis=1)
        if MEAN_IS_ROUNDED:
            row_mean += remaining / d
        t = load_tile(T, k, k, T_row, T_column, in_M)
        q = tl.dot(p, t, input_precision=PRECISION).to(dtype)
        slim = load_tile(s + flat * r, rows, k, r, 1, in_image[:, None] & (k < r)[None, :])
        M_sum = tl.load(M_target, mask=in_M & is_later, other=0.0)
        M_sum = tl.dot(tl.trans(q), slim, M_sum, input_precision=PRECISION)
        tl.store(M_target, M_sum, mask=in_M)

        for first in range(0, d, BLOCK_D):
            columns = first + tl.arange(0, BLOCK_D)
            inside = in_image[:, None] & (columns < d)[None, :]
            G = load_tile(grad_tile, rows, columns, grad_row, grad_column, inside)
            u = load_tile(U, k, columns, U_column, U_row, (k < r)[:, None] & (columns < d)[None, :])  # transposed
            X = load_tile(a_tile, rows, columns, a_row, a_column, inside)
            if b is not None:
                B = load_tile(b + image * b_image + start * b_row, rows, columns, b_row, b_column, inside)
                X = X.to(tl.float32) * B.to(tl.float32)
            if mean is not None:
                X = (X.to(tl.float32) - row_mean[:, None]) * row_rstd[:, None]
                if weight is not None:
                    X *= tl.load(weight + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
                if bias is not None:
                    X += tl.load(bias + columns, mask=columns < d, other=0.0).to(tl.float32)[None, :]
            if IS_OUTPUT:
                X = X.to(tl.float32) + tl.dot(slim, u, input_precision=PRECISION)
            if grad_x is not None:
                result = G.to(tl.float32) - tl.dot(q, u, input_precision=PRECISION)
                target = grad_x + image * grad_x_image + start * grad_x_row
                target += rows[:, None] * grad_x_row + columns[None, :] * grad_x_column
                tl.store(target, result.to(dtype), mask=inside)
            target = sums + k[:, None] * d + columns[None, :]
            in_sum = (k < r)[:, None] & (columns < d)[None, :]
            U_sum = tl.load(target, mask=in_sum & is_later, other=0.0)
            U_sum = tl.dot(tl.trans(q), X.to(dtype), U_sum, input_precision=PRECISION)
            U_sum = tl.dot(tl.trans(slim), G, U_sum, input_precision=PRECISION)
            tl.store(target, U_sum, mask=in_sum)
        tl.debug_barrier()  # The next tile reads the sums, perhaps in other threads.


@triton.jit
def add_sums_kernel(sums, grad_U, grad_M, programs, size_U, size_M, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """Add the sums of all programs, in a fixed order."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = size_U + size_M
    total = tl.zeros((PROGRAMS, BLOCK), tl.float32)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        mask = (program < programs)[:, None] & (element < size)[None, :]
        total += tl.load(sums + program.to(tl.int64)[:, None] * size + element[None, :], mask=mask, other=0.0)
    result = tl.sum(total, axis=0)
    tl.store(grad_U + element, (-result).to(grad_U.dtype.element_ty), mask=element < size_U)
    in_M = (element >= size_U) & (element < size)
    tl.store(grad_M + element - size_U, result.to(grad_M.dtype.element_ty), mask=in_M)
