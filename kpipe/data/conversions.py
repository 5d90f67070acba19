"""Images that were changed on the way from their file to 8 bits of red, green and blue."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kpipe.data.image_files import BLACK, WHITE, Color


@dataclass
class Conversions:
    """Numbers of the images that were met and changed; one that is read often counts once."""

    background: Color
    """What transparent pixels show."""
    transparent: set[int] = field(default_factory=set)
    """Images with transparent pixels."""
    deep: set[int] = field(default_factory=set)
    """Images of 16 bits."""

    def note(self, number: int, *, transparent: bool, deep: bool) -> None:
        """Note what was done to the image of this number."""
        if transparent:
            self.transparent.add(int(number))
        if deep:
            self.deep.add(int(number))

    def among(self, numbers: Iterable[int]) -> dict[str, list[int]]:
        """Return those of these images that were changed, by the kind of the change, as JSON types."""
        numbers = set(map(int, numbers)) if self.transparent or self.deep else set()
        return {"transparent": sorted(self.transparent & numbers), "deep": sorted(self.deep & numbers)}

    def add(self, changed: Mapping[str, Sequence[int]]) -> None:
        """Note what `among` returned."""
        self.transparent.update(changed["transparent"])
        self.deep.update(changed["deep"])


def describe_conversions(conversions: Sequence[Conversions]) -> list[str]:
    """Return a line for the user for each kind of change that happened, with the number of images."""
    lines = []
    if transparent := sum(len(each.transparent) for each in conversions):
        background = conversions[0].background
        color = {WHITE: "white", BLACK: "black"}.get(background, list(background))
        have, they = ("image has", "it is") if transparent == 1 else ("images have", "they are")
        lines.append(f"{transparent:,} {have} transparent pixels; {they} drawn on {color} (data.background)")
    if deep := sum(len(each.deep) for each in conversions):
        have, they = ("image has", "it is") if deep == 1 else ("images have", "they are")
        lines.append(f"{deep:,} {have} 16 bits; {they} scaled to 8")
    return lines
