"""The error of one setting: the API names the setting, the page its label."""

from hra_diffusion.errors import ConfigError


class SettingError(ConfigError):
    """A setting of a request or a training job is invalid.

    Args:
        setting: the setting's name in the API.
        problem: the rest of the sentence: what was found, and what to do.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting, self.problem = setting, problem
