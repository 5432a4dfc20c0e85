"""The prompt and the negative prompt, with the number of tokens while typing."""

import math
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import quote_start
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.first_visit import unknown_words_hint
from hra_diffusion.studio.tabs.labels import LABELS


@dataclass(frozen=True)
class PromptFields:
    """The two prompts and the token counter below them."""

    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    counter: gr.HTML


def prompt_fields(default: GenerateRequest) -> PromptFields:
    """Build the fields."""
    with gr.Group(elem_classes="panel", elem_id="prompts-panel"):
        prompt = gr.Textbox(
            default.prompt, label=LABELS["prompt"], lines=3, max_lines=8, elem_id="prompt", autofocus=True
        )
        counter = gr.HTML("", label="tokens", elem_id="token-counter")
        negative_prompt = gr.Textbox(
            "",
            label=LABELS["negative_prompt"],
            placeholder="what the image should not contain",
            lines=1,
            max_lines=4,
            elem_id="negative-prompt",
        )
    return PromptFields(prompt, negative_prompt, counter)


def count_tokens(
    session: Session, fields: PromptFields, syntax: gr.Radio, adapters: gr.HTML, base: gr.Dropdown
) -> None:
    """Count the tokens at every change of the prompt, once the model is loaded, and name unknown words."""

    def count(prompt: str, prompt_syntax: str, uses: Any, base: str) -> str:
        if not isinstance(prompt, str):
            return ""
        return tokens(prompt, prompt_syntax) + unknown_words_hint(session, prompt, uses, base)

    def tokens(prompt: str, prompt_syntax: str) -> str:
        if not session.worker.is_loaded:
            return ""
        length = session.worker.generator.prompt_length(prompt, "plain" if prompt_syntax == "plain" else "a1111")
        text = f"{length.tokens} of {length.limit} tokens"
        if length.ignored:
            return f'<p class="tokens warning" role="status">{text}. Ignored: {quote_start(length.ignored)}</p>'
        parts = math.ceil(length.tokens / length.limit)
        if parts > 1:
            text = f"{length.tokens} tokens, in {parts} parts of {length.limit}"
        return f'<p class="tokens">{text}</p>'

    listen(
        [fields.prompt.change, syntax.change, adapters.change, base.change],
        count,
        [fields.prompt, syntax, adapters, base],
        fields.counter,
        trigger_mode="always_last",
        queue=False,
    )
