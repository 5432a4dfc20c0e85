"""Listeners of the page's events. All of them are registered here.

Gradio covers each output of a failed event with the word "Error", inputs included. Progress is therefore hidden for
every event: an error is a message, and an action that takes time disables its button and names what it does.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.context import Context

from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.tabs.common import gradio_errors, reports_errors, user_error
from hra_diffusion.studio.tabs.labels import LABELS

_OPTIONS: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def listen(
    triggers: Any, handler: Callable[..., Any] | None, inputs: Any = None, outputs: Any = None, **options: Any
) -> Any:
    """Call a handler on an event of the page; errors become messages with the labels of the page.

    Args:
        triggers: an event such as ``button.click`` or ``dependency.then``, a list of events, or None for the page load.
        handler: a function or a generator function; None with ``js``.
        inputs: components whose values are the arguments.
        outputs: components that the results update.
        options: options of ``gr.on``, such as ``queue`` or ``js``.

    Returns:
        The dependency, for ``.then``, ``.success`` and ``.failure``.
    """
    function = handler and reports_errors(handler, page_errors)
    options["api_name"] = f"page_{handler.__name__}" if handler else None  # keeps the names of the API's endpoints free
    if triggers is None:  # gr.on(None) would also listen to the changes of all inputs
        assert Context.root_block, "Listeners are registered within the page's with block."
        triggers = [Context.root_block.load]
    if isinstance(triggers, Sequence):
        return gr.on(triggers, function, inputs, outputs, **_OPTIONS, **options)
    return triggers(function, inputs, outputs, **_OPTIONS, **options)


def listen_busy(
    button: gr.Button,
    busy: str,
    handler: Callable[..., Any],
    inputs: Any = None,
    outputs: Any = None,
    **options: Any,
) -> Any:
    """Call a handler on a click, with the button disabled and busy until it ends.

    Args:
        button: the button.
        busy: its text meanwhile, such as "Estimating…".
        handler: a function or a generator function.
        inputs: components whose values are the arguments.
        outputs: components that the results update.
        options: options of ``gr.on``.

    Returns:
        The dependency of the handler.
    """
    started = listen(button.click, None, None, button, js=_button_script(busy, enabled=False))
    done = listen(started.then, handler, inputs, outputs, **options)
    listen_after(done, None, None, button, js=_button_script(str(button.value), enabled=True))
    return done


def listen_after(dependency: Any, handler: Callable[..., Any] | None, *components: Any, **options: Any) -> None:
    """Call a handler after an event, also after an error: gradio's ``then`` is left out after errors."""
    for trigger in (dependency.then, dependency.failure):
        listen(trigger, handler, *components, **options)


def _button_script(text: str, *, enabled: bool) -> str:
    """Return a script that changes a button at once, without a request."""
    return f"() => ({json.dumps({'__type__': 'update', 'value': text, 'interactive': enabled})})"


@contextmanager
def page_errors() -> Iterator[None]:
    """Turn errors into messages as `gradio_errors` does, with the label of the page for an invalid setting."""
    with gradio_errors():
        try:
            yield
        except SettingError as error:  # studio.js focuses the field whose label is quoted first
            label = LABELS.get(error.setting, error.setting)
            raise user_error(f"“{label}” {error.problem}") from error
