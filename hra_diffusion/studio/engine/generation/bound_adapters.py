"""The adapters of a request that binds them to its prompt: those whose trigger word the prompt holds."""

from dataclasses import replace

from hra_diffusion.pipelines.adapter_folders import adapters_of_prompt
from hra_diffusion.pipelines.prompts import plain_text
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.requests import AdapterUse, GenerateRequest


def with_named_adapters(request: GenerateRequest, library: Library, base: str) -> GenerateRequest:
    """Return the request for the adapters that its prompt names, without a binding; a control stays.

    Args:
        request: a request; its chosen adapters can be named, or without any those of the library for the base.
        library: the adapters.
        base: the public name of the base model.

    Raises:
        AdapterFileError: none of the adapters has a trigger word.
        ConfigError: two adapters have the same trigger word, or the prompt names too many.
    """
    if request.bind == "none":
        return request
    entries = {use.name: library.entry(use.name) for use in request.adapters}
    controls = tuple(use for use in request.adapters if entries[use.name].annotator)
    strengths = {use.name: use.strength for use in request.adapters if use not in controls}
    if not strengths:
        entries |= {entry.name: entry for entry in library.entries() if entry.base == base and not entry.annotator}
        strengths = {name: 1.0 for name, entry in entries.items() if not entry.annotator}
    text = plain_text(request.prompt, request.prompt_syntax)
    names = {entries[name].folder: name for name in strengths}
    named = adapters_of_prompt(list(names), text) if strengths else {}
    uses = [AdapterUse(name=names[folder], strength=strengths[names[folder]]) for folder in named]
    return replace(request, adapters=(*uses, *controls), bind="none")
