"""Attributes of a scene as labels with captions: the judge trains on them and classifies by them."""

from emoji_world import world
from emoji_world.scenes import Background, Spec
from hra_diffusion.metrics.vocabulary import Vocabulary

NOTHING = "nothing"
_STYLE = next(iter(world.STYLES))
_WHITE = Background(kind="plain", colors=("white",))

# Backgrounds in test prompts, colors and locations in turns; few of them are in the subjects' images.
_CONTEXTS = ("black", "beach", "brown", "night", "blue", "snow", "red", "forest")
_UNRELATED = 8


def vocabulary() -> Vocabulary:
    """Return labels and captions of every attribute, and the prompts that test adapters."""
    attributes = {
        "object": {kind: _thing(kind) for kind in world.KINDS},
        "style": {style: f"a {words}" for style, words in world.STYLES.items()},
        "color": {color: _thing("thing", color=color) for color in world.COLORS},
        "pattern": {pattern: _thing("thing", pattern=pattern) for pattern in world.PATTERNS},
        "worn": {NOTHING: f"with {NOTHING} on", **{worn: f"with {_worn_phrase(worn)}" for worn in world.ACCESSORIES}},
        "background": {
            **{color: Background(kind="plain", colors=(color,)).phrases[0] for color in world.COLORS},
            **{backdrop: f"on a {backdrop} background" for backdrop in world.BACKDROPS},
            **{location.name: location.phrases[0] for location in world.LOCATIONS},
        },
    }
    contexts = {label: attributes["background"][label] for label in _CONTEXTS}
    kinds = list(world.KINDS)[:: len(world.KINDS) // _UNRELATED][:_UNRELATED]
    unrelated = [
        f"a {world.STYLES[_STYLE]} of {_thing(kind)} {words}"
        for kind, words in zip(reversed(kinds), contexts.values(), strict=True)
    ]
    return Vocabulary(attributes=attributes, contexts=contexts, unrelated=unrelated)


def true_labels(spec: Spec, worn: str | None = None) -> dict[str, str | None]:
    """Return the label of each attribute of a scene; None for an attribute without a label."""
    background = spec.background
    return {
        "object": spec.kind,
        "style": spec.style,
        "color": spec.color,
        "pattern": spec.pattern,
        "worn": worn or NOTHING,
        "background": background.colors[0] if background.kind == "plain" else background.kind,
    }


def _thing(kind: str, *, color: str | None = None, pattern: str | None = None) -> str:
    return Spec(kind=kind, style=_STYLE, color=color, pattern=pattern, background=_WHITE).thing


def _worn_phrase(worn: str) -> str:
    return worn if worn.endswith("s") else _thing(worn)
