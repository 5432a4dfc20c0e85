"""Registration of endpoints: a name, typed parameters, data as result, and errors as messages."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from hra_diffusion.studio.tabs.common import reports_errors


def expose(
    name: str,
    handler: Callable[..., Any],
    inputs: Sequence[gr.components.Component],
    outputs: gr.components.Component | Sequence[gr.components.Component] | None,
    **options: Any,
) -> None:
    """Add an endpoint whose parameters are components, such as files and the settings of the page.

    Args:
        name: the endpoint's name, also of the tool in MCP.
        handler: a function of the components' values.
        inputs: the parameters, with the components' values as defaults.
        outputs: hidden components that turn the results into data.
        options: options of ``gr.on``.
    """
    gr.on([], reports_errors(handler), list(inputs), outputs, api_name=name, show_progress="hidden", **options)


def expose_typed(name: str, handler: Callable[..., Any]) -> None:
    """Add an endpoint whose parameters and result are JSON, described by the type hints of a function."""
    gr.api(reports_errors(handler), api_name=name)
