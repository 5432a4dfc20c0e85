"""The first visit: what the base knows, example prompts, and an example adapter that is chosen already."""

import html
from typing import Any

from hra_diffusion.errors import HRAError
from hra_diffusion.studio.engine.models.base_vocabulary import embedded_vocabulary
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import empty_state

_MAX_EXAMPLES = 4


def example_requests(session: Session) -> list[tuple[str, str]]:
    """Return example prompts, each with the name of its adapter, which is "" for the base alone."""
    examples = [(session.default_request.prompt, "")]
    for entry in session.library.entries():
        if entry.trigger and not entry.annotator and entry.base == session.worker.base.name:
            examples.insert(0, (f"{entry.trigger} in the snow", entry.name))
    return examples[:_MAX_EXAMPLES]


def first_settings(session: Session) -> dict[str, Any]:
    """Return the settings of a first visit by name: on the embedded base, an example adapter and its prompt."""
    prompt, adapter = example_requests(session)[0]
    return (
        {"prompt": prompt, "adapters": [{"name": adapter, "strength": 1}]}
        if session.worker.base.is_embedded and adapter
        else {}
    )


def first_visit(session: Session) -> str:
    """Return the HTML before the first image: the next step, example prompts, and the way to the Train tab."""
    adapter = example_requests(session)[0][1] if session.worker.base.is_embedded else ""
    if adapter:
        title = f"The adapter “{adapter}” is chosen: press Generate"
        text = "Before / after then generates the same seed without it. Or start with an example:"
    else:
        title = "No images yet"
        text = "Write a prompt and press Generate or Ctrl+Enter, or start with an example:"
    buttons = "".join(
        f'<button type="button" class="example-prompt" data-prompt="{html.escape(prompt)}" '
        f'data-adapter="{html.escape(name)}">{html.escape(prompt)}{_adapter_tag(name)}</button>'
        for prompt, name in example_requests(session)
    )
    train = '<button type="button" class="tab-link" data-tab="Train">Train your own</button>'
    return empty_state(title, text, f'<div class="example-prompts">{buttons}</div>{train}')


def base_knowledge(session: Session) -> str:
    """Return the HTML of what the embedded base knows, folded; "" for other bases."""
    if not session.worker.base.is_embedded:
        return ""
    try:
        known = embedded_vocabulary()
    except HRAError:  # an installation without the judge: the page works without the list
        return ""
    things, backgrounds = (html.escape(", ".join(words)) for words in (known.things, known.backgrounds))
    return (
        f'<details class="knowledge"><summary>It knows {len(known.things)} things</summary><div>'
        f"<p><b>Things:</b> {things}</p><p><b>Backgrounds:</b> {backgrounds}</p>"
        "<p><b>Styles:</b> a 3d render of, a flat icon of</p></div></details>"
    )


def unknown_words_hint(session: Session, prompt: str, adapters: Any, base: str | None = None) -> str:
    """Return the HTML of a hint with the words of a prompt that the embedded base does not know; "" without one.

    Args:
        session: the studio's session.
        prompt: the prompt.
        adapters: the value of the adapter cards; the prompts of chosen adapters are known.
        base: name of the chosen base, by default the studio's first one.
    """
    if not session.worker.base.is_embedded or base not in (None, session.worker.base.name):
        return ""
    names = {use.get("name") for use in adapters or [] if isinstance(use, dict)}
    entries = session.library.entries() if names else []
    chosen = [text for entry in entries if entry.name in names for text in (entry.trigger, entry.token) if text]
    try:
        unknown = embedded_vocabulary().unknown_words(prompt, chosen)
    except HRAError:
        return ""
    if not unknown:
        return ""
    words = ", ".join(f"“{html.escape(word[:40])}”" for word in unknown[:5]) + ", …" * (len(unknown) > 5)
    return f'<p class="tokens warning">The demo base does not know {words}: the list is at the top of the page.</p>'


def _adapter_tag(name: str) -> str:
    return f" <b>{html.escape(name)}</b>" if name else ""
