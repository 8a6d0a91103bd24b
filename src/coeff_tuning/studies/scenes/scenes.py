"""Scenes of coloured shapes, what can be asked about them, and how they are described."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220), "yellow": (240, 210, 30)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("one", "two", "three", "four")
SIZE = 56  # pixels: four by four patches of DINOv2, so that each place has four of them


@dataclass(frozen=True)
class Scene:
    """Shapes at places.

    Attributes:
        objects: place to (colour, shape); no two objects are the same.
    """

    objects: dict[str, tuple[str, str]]

    def draw(self) -> Image.Image:
        """The scene as an image of `SIZE` pixels on light grey."""
        image = Image.new("RGB", (SIZE, SIZE), (235, 235, 235))
        pen, half = ImageDraw.Draw(image), SIZE // 2
        for place, (colour, shape) in self.objects.items():
            left, top = half * place.endswith("right") + 4, half * place.startswith("bottom") + 4
            right, bottom = left + half - 8, top + half - 8
            if shape == "circle":
                pen.ellipse((left, top, right, bottom), COLOURS[colour])
            elif shape == "square":
                pen.rectangle((left, top, right, bottom), COLOURS[colour])
            else:
                pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], COLOURS[colour])
        return image

    def has(self, name: str) -> bool:
        """Whether an object is in the scene.

        Args:
            name: a shape, a colour, or both as in "red circle".

        Returns:
            True if at least one is.
        """
        return any(set(name.split()) <= set(thing) for thing in self.objects.values())

    def names(self) -> list[str]:
        """The objects from the top left to the bottom right, as in "a red circle"."""
        return [f"a {' '.join(self.objects[place])}" for place in PLACES if place in self.objects]


def make(draw: random.Random, most: int = 4) -> Scene:
    """A random scene.

    Args:
        draw: source of chance.
        most: largest number of objects.

    Returns:
        One to `most` different objects at different places.
    """
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    number = draw.randint(1, most)
    return Scene(dict(zip(draw.sample(PLACES, number), draw.sample(things, number), strict=True)))


def ask_vqa(scene: Scene, draw: random.Random) -> tuple[str, str]:
    """Colour of the only object of a shape where there is one, else how many objects there are.

    Args:
        scene: what is asked about.
        draw: source of chance.

    Returns:
        Question and answer.
    """
    shapes = [shape for _, shape in scene.objects.values()]
    single = [thing for thing in scene.objects.values() if shapes.count(thing[1]) == 1]
    if single and draw.random() < 0.7:
        colour, shape = draw.choice(single)
        return f"what colour is the {shape}?", colour
    return "how many shapes?", NUMBERS[len(shapes) - 1]


def ask_gqa(scene: Scene, draw: random.Random) -> tuple[str, str]:
    """What is at a place, or whether something is there; yes and no are equally frequent.

    Args:
        scene: what is asked about.
        draw: source of chance.

    Returns:
        Question and answer.
    """
    if draw.random() < 0.5:
        place = draw.choice(list(scene.objects))
        return f"which shape is {place}?", scene.objects[place][1]
    wanted = draw.random() < 0.5
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    name = draw.choice([name for name in names if scene.has(name) == wanted])
    return f"is there a {name}?", "yes" if wanted else "no"


def ask_nlvr(left: Scene, right: Scene, draw: random.Random) -> tuple[str, bool]:
    """A statement about two scenes; true and false are equally frequent where both can be had.

    Args:
        left: first scene.
        right: second scene.
        draw: source of chance.

    Returns:
        Statement, and whether it holds.
    """
    wanted = draw.random() < 0.5
    statements = [(f"both have a {shape}", left.has(shape) and right.has(shape)) for shape in SHAPES]
    statements += [(f"both have {colour}", left.has(colour) and right.has(colour)) for colour in COLOURS]
    fitting = [statement for statement in statements if statement[1] == wanted]
    return draw.choice(fitting or statements)


def describe(scene: Scene) -> list[str]:
    """References of a caption.

    Args:
        scene: of at most two objects.

    Returns:
        One sentence, or both orders of two objects.
    """
    names = scene.names()
    return list(dict.fromkeys([" and ".join(names), " and ".join(reversed(names))]))
