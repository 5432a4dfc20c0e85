"""The mathematics of Householder chains; needs torch only."""

from hra_diffusion.householder.chain import chain_apply, chain_matrix, unit_columns
from hra_diffusion.householder.compact_wy import CompactWY, factor
from hra_diffusion.householder.reflection import reflect
from hra_diffusion.householder.start import paired_columns, random_columns

__all__ = [
    "CompactWY",
    "chain_apply",
    "chain_matrix",
    "factor",
    "paired_columns",
    "random_columns",
    "reflect",
    "unit_columns",
]
