"""Presets of the settings of generation by name, in a JSON file; all users of a studio share them."""

import json
import threading
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.reading import read_json
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.text import nearest

MAX_NAME, MAX_PRESETS = 60, 200
_PROMPTS = ("prompt", "negative_prompt")
_LEFT_OUT = ("seed", "image", "mask", "condition")
"""Settings of one image, which presets do not have."""


class Presets:
    """The presets of a file.

    Args:
        file: the JSON file; it is created by the first preset.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the settings of all presets by name, sorted.

        Raises:
            AdapterFileError: the file is damaged.
        """
        values = read_json(self.file) if self.file.exists() else {}
        return {
            name: settings
            for name, settings in sorted(values.items(), key=lambda item: item[0].casefold())
            if isinstance(settings, dict)
        }

    def settings(self, name: object) -> dict[str, Any]:
        """Return the settings of a preset.

        Raises:
            AdapterFileError: the file is damaged.
            ConfigError: the name is unknown.
        """
        presets = self.all()
        if not isinstance(name, str) or name.strip() not in presets:
            raise ConfigError(f"There is no preset {str(name)[:MAX_NAME]!r}{nearest(str(name)[:MAX_NAME], presets)}")
        return presets[name.strip()]

    def save_preset(self, name: object, request: GenerateRequest, *, prompts: bool) -> str:
        """Save the settings of a request as a preset; an earlier one of this name is replaced.

        Seed, start image and control image are left out.

        Args:
            name: 1 to 60 characters.
            request: the settings.
            prompts: whether the preset has the prompt and the negative prompt.

        Returns:
            The name.

        Raises:
            AdapterFileError: the file is damaged.
            ConfigError: the name is empty or too long, or there are too many presets.
            OutputError: the file cannot be written; it is unchanged.
        """
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise ConfigError(f"The name of a preset has 1 to {MAX_NAME} characters; found {name[:80]!r}.")
        left_out = _LEFT_OUT if prompts else (*_LEFT_OUT, *_PROMPTS)
        settings = {key: value for key, value in request.to_json().items() if key not in left_out}
        with self._lock:
            presets = self.all() | {name: settings}
            if len(presets) > MAX_PRESETS:
                raise ConfigError(f"There are {MAX_PRESETS} presets, the most there can be: delete one first.")
            self._write_all(presets)
        return name

    def delete_preset(self, name: object) -> str:
        """Delete a preset and return its name; errors as in `settings`, or the file cannot be written."""
        with self._lock:
            self.settings(name)
            presets = self.all()
            del presets[str(name).strip()]
            self._write_all(presets)
        return str(name).strip()

    def _write_all(self, presets: dict[str, dict[str, Any]]) -> None:
        text = json.dumps(presets, indent=1, ensure_ascii=False)
        write_file(self.file, lambda path: path.write_text(text, encoding="utf-8"))
