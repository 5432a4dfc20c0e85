"""What there is to tell about a scene, as labels with captions: the judge is taught them and asked by them."""

from emoji_world import world
from emoji_world.scenes import Background, Spec
from hra_diffusion.metrics.vocabulary import Vocabulary

NOTHING = "nothing"
_STYLE = next(iter(world.STYLES))
_WHITE = Background(kind="plain", colors=("white",))

# Where subjects are asked to appear, a color and a place in turns; few of them are backgrounds of their images.
_CONTEXTS = ("black", "beach", "brown", "night", "blue", "snow", "red", "forest")
_UNRELATED = 8


def vocabulary() -> Vocabulary:
    """Labels and captions of every attribute, and the prompts that adapters are tested with."""
    attributes = {
        "object": {kind: _thing(kind) for kind in world.KINDS},
        "style": {style: f"a {words}" for style, words in world.STYLES.items()},
        "color": {color: _thing("thing", color=color) for color in world.COLORS},
        "pattern": {pattern: _thing("thing", pattern=pattern) for pattern in world.PATTERNS},
        "worn": {NOTHING: f"with {NOTHING} on", **{worn: f"with {_some(worn)}" for worn in world.ACCESSORIES}},
        "background": {
            **{color: Background(kind="plain", colors=(color,)).phrases[0] for color in world.COLORS},
            **{backdrop: f"on a {backdrop} background" for backdrop in world.BACKDROPS},
            **{place.name: place.phrases[0] for place in world.PLACES},
        },
    }
    contexts = {label: attributes["background"][label] for label in _CONTEXTS}
    kinds = list(world.KINDS)[:: len(world.KINDS) // _UNRELATED][:_UNRELATED]
    unrelated = [
        f"a {world.STYLES[_STYLE]} of {_thing(kind)} {words}"
        for kind, words in zip(reversed(kinds), contexts.values(), strict=True)
    ]
    return Vocabulary(attributes=attributes, contexts=contexts, unrelated=unrelated)


def truth(spec: Spec, worn: str | None = None) -> dict[str, str | None]:
    """The label of each attribute of a scene; None where it has none, as a thing in its own colors."""
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


def _some(worn: str) -> str:
    return worn if worn.endswith("s") else _thing(worn)
