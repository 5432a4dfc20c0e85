"""Named errors. Each message says what was wrong, what was found and what to do, in one sentence where that is enough.

The command line prints the message alone and exits with code 2; from Python they are ordinary exceptions.
"""


class HRAError(Exception):
    """Base of every error this library raises on purpose."""


class ConfigError(HRAError, ValueError):
    """A setting is out of its range, unknown, or contradicts another."""


class TargetError(HRAError, ValueError):
    """The target modules match nothing that can be adapted."""


class MergeError(HRAError, ValueError):
    """An adapter cannot be merged into the weights."""


class AdapterFileError(HRAError, ValueError):
    """An adapter folder or file is missing, damaged, or made for another model."""


class ModelError(HRAError, ValueError):
    """A folder or name is not a model this library can use."""


class ImageError(HRAError, ValueError):
    """An image or a folder of images cannot be used."""


class OutputError(HRAError, OSError):
    """A result cannot be written where it was asked for."""


class BusyError(HRAError):
    """Too many ask at once, or one thing would have to end before another begins."""
