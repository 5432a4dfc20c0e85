"""The emoji world: kinds of things, colors, patterns, styles and locations, with their words."""

from typing import NamedTuple

RGB = tuple[int, int, int]


class Location(NamedTuple):
    """A location's name and its phrases in captions, the most common first."""

    name: str
    phrases: tuple[str, ...]


# Name → Unicode code point of the icon. Well-known faces and single objects, all distinct.
KINDS: dict[str, str] = {
    "cat": "1f431",
    "dog": "1f436",
    "fox": "1f98a",
    "lion": "1f981",
    "tiger": "1f42f",
    "bear": "1f43b",
    "panda": "1f43c",
    "koala": "1f428",
    "frog": "1f438",
    "pig": "1f437",
    "monkey": "1f435",
    "rabbit": "1f430",
    "mouse": "1f42d",
    "elephant": "1f418",
    "turtle": "1f422",
    "fish": "1f420",
    "octopus": "1f419",
    "butterfly": "1f98b",
    "owl": "1f989",
    "penguin": "1f427",
    "chick": "1f425",
    "whale": "1f433",
    "apple": "1f34e",
    "banana": "1f34c",
    "strawberry": "1f353",
    "pineapple": "1f34d",
    "mushroom": "1f344",
    "hamburger": "1f354",
    "doughnut": "1f369",
    "teapot": "1fad6",
    "bell": "1f514",
    "umbrella": "2602",
    "hat": "1f3a9",
    "backpack": "1f392",
    "clock": "23f0",
    "crown": "1f451",
    "balloon": "1f388",
    "gift": "1f381",
    "teddy bear": "1f9f8",
    "car": "1f697",
    "bus": "1f68c",
    "rocket": "1f680",
    "sailboat": "26f5",
    "cactus": "1f335",
    "sunflower": "1f33b",
    "tree": "1f333",
    "house": "1f3e0",
    "robot": "1f916",
}

# Excluded from training: the autoencoder is measured on them.
HELD_OUT_KINDS: dict[str, str] = {
    "snail": "1f40c",
    "dolphin": "1f42c",
    "carrot": "1f955",
    "cupcake": "1f9c1",
    "guitar": "1f3b8",
    "camera": "1f4f7",
    "tractor": "1f69c",
    "tulip": "1f337",
}

# Worn by subjects only.
ACCESSORIES: dict[str, str] = {
    "scarf": "1f9e3",
    "sunglasses": "1f576",
    "ribbon": "1f380",
    "straw hat": "1f452",
    "cap": "1f9e2",
    "star": "2b50",
    "heart": "2764",
}

COLORS: dict[str, RGB] = {
    "red": (222, 42, 48),
    "orange": (245, 138, 30),
    "yellow": (250, 214, 50),
    "green": (56, 170, 74),
    "blue": (44, 112, 226),
    "purple": (138, 68, 196),
    "pink": (248, 134, 184),
    "brown": (136, 84, 46),
    "black": (20, 20, 22),
    "white": (250, 250, 250),
    "gray": (140, 142, 146),
}

# Object patterns by their adjective, and backgrounds in two colors.
PATTERNS: tuple[str, ...] = ("striped", "checkered", "spotted")
BACKDROPS: tuple[str, ...] = (*PATTERNS, "gradient")

# Folder of the icons → the style in captions.
STYLES: dict[str, str] = {"3d": "3d render", "flat": "flat icon"}

LOCATIONS: tuple[Location, ...] = (
    Location("beach", ("on the beach", "on a sandy beach")),
    Location("snow", ("in the snow", "in a snowy landscape")),
    Location("meadow", ("in a meadow", "on the grass")),
    Location("desert", ("in the desert", "among sand dunes")),
    Location("night", ("at night", "under the moon")),
    Location("space", ("in space", "among the stars")),
    Location("water", ("under water", "in the deep sea")),
    Location("sunset", ("at sunset", "in front of a sunset")),
    Location("wood", ("on a wooden floor", "on wooden boards")),
    Location("brick", ("in front of a brick wall", "by a brick wall")),
    Location("forest", ("in the forest", "among the trees")),
    Location("city", ("in the city", "in front of a skyline")),
)
