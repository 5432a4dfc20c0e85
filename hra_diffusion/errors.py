"""Exceptions of this library. A message names the fault, the value and the remedy.

The command line prints only the message and exits with code 2.
"""


class HRAError(Exception):
    """Base class of all errors of this library."""


class ConfigError(HRAError, ValueError):
    """A setting is unknown, out of its range, or contradicts another."""


class TargetError(HRAError, ValueError):
    """The target modules match no module, or one that cannot be adapted."""


class MergeError(HRAError, ValueError):
    """An adapter cannot be merged into the weights."""


class AdapterFileError(HRAError, ValueError):
    """An adapter folder or file is missing, damaged, or made for another model."""


class ModelError(HRAError, ValueError):
    """A folder or name is not a usable model."""


class ImageError(HRAError, ValueError):
    """An image or a folder of images cannot be used."""


class OutputError(HRAError, OSError):
    """A result cannot be written to its path."""


class OutOfMemoryError(HRAError, MemoryError):
    """A device or the machine has too little memory."""


class DivergedError(HRAError, ArithmeticError):
    """A loss, a gradient or a weight of a training run is not finite."""


class MissingExtraError(HRAError, ImportError):
    """A package of an extra is not installed."""


class BusyError(HRAError):
    """Too many requests at once, or another task must end first."""
