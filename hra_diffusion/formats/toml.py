"""TOML: the standard library's tomllib, or before Python 3.11 the package tomli, its model."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
