"""The catalogue: which networks can be built, and what each costs, without importing torch.

``catalogue.json`` is counted once on the meta device and ships with the package. A cell holds the
figures of the body alone; the classifier depends on the number of classes K and is added here: each class costs the
same MACs and parameters, whatever the head. They are those of RGB pictures; for grey ones two channels are taken off.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import UnknownNameError, UserError
from stillhouse.search.formula import Formulas


@dataclass(frozen=True)
class Arch:
    """One architecture.

    Attributes:
        family: ``cnn`` or ``vit``.
        stems: Stems that it can be built with.
        macs_per_class, params_per_class: What each class adds.
        cells: (network size, stem) -> (MACs, parameters) of the body, for RGB pictures.
        per_channel: (network size, stem) -> (MACs, parameters) of each channel of the picture; empty where the
            architecture reads RGB only.
        lacks: Stem or cell ``size|stem`` -> precision -> why no file of it works, for ``lacking`` to read.
        excluded: Stem or cell -> why it is none.
    """

    family: str
    stems: tuple[str, ...]
    macs_per_class: int
    params_per_class: int
    cells: Mapping[tuple[Size, str], tuple[int, int]]
    per_channel: Mapping[tuple[Size, str], tuple[int, int]] = field(default_factory=dict)
    lacks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Arch:
        """Reads one entry of the catalogue's ``archs``."""
        cells, per_channel = {}, {}
        for key, cell in data["cells"].items():
            size, stem = key.split("|")
            place = Size.parse(size), stem
            cells[place] = (int(cell["macs"]), int(cell["params"]))
            if "macs_per_channel" in cell:
                per_channel[place] = (int(cell["macs_per_channel"]), int(cell["params_per_channel"]))
        return cls(
            family=data["family"],
            stems=tuple(data["stems"]),
            macs_per_class=int(data["macs_per_class"]),
            params_per_class=int(data["params_per_class"]),
            cells=cells,
            per_channel=per_channel,
            lacks=data.get("lacks", {}),
            excluded=data.get("excluded", {}),
        )

    @property
    def side_step(self) -> int:
        """Sides of pictures that it reads with its own stem are multiples of this: a ViT's patch, 1 for a CNN."""
        if self.family != "vit":
            return 1
        return math.gcd(*(side for size, stem in self.cells if stem == "stock" for side in (size.height, size.width)))

    def body(self, size: Size, stem: str) -> tuple[int, int] | None:
        """(MACs, parameters) for RGB pictures, as counted or as the counted sizes tell them; None where they do not.

        And None where its check failed.
        """
        if f"{size}|{stem}" in self.excluded:
            return None
        return self.cells.get((size, stem)) or self.formulas.at(size, stem)

    def channel(self, size: Size, stem: str) -> tuple[int, int] | None:
        """The same of each channel of the picture."""
        return self.per_channel.get((size, stem)) or self._channel_formulas.at(size, stem)

    @functools.cached_property
    def formulas(self) -> Formulas:
        """Costs of the body at sizes that are no cells."""
        return Formulas(self.cells)

    @functools.cached_property
    def _channel_formulas(self) -> Formulas:
        return Formulas(self.per_channel)


@dataclass(frozen=True)
class Catalogue:
    """What the workers can build.

    Attributes:
        names: All names that a teacher may have (timm's).
        archs: Architectures with counted costs, by name.
        image_sizes: Picture sizes that a search considers, smallest first.
        code: Stage kind -> digest of the code that decides its result.
        pretrained: Networks that start from trained weights where the workers run, as far as published.
        excluded: Network -> stem or cell ``size|stem`` -> why it is no candidate: its check failed.
    """

    names: frozenset[str]
    archs: Mapping[str, Arch]
    image_sizes: tuple[Size, ...]
    code: Mapping[str, str] = field(default_factory=dict)
    pretrained: frozenset[str] = frozenset()
    excluded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Catalogue:
        """Reads the catalogue's JSON form."""
        excluded = data.get("excluded", {})
        archs = {name: {**entry, "excluded": excluded.get(name, {})} for name, entry in sorted(data["archs"].items())}
        return cls(
            names=frozenset(data["names"]),
            archs={name: Arch.from_json(entry) for name, entry in archs.items()},
            image_sizes=tuple(sorted({Size.parse(size) for size in data["image_sizes"]}, key=by_pixels)),
            code=dict(data.get("code", {})),
            pretrained=frozenset(name for source in data.get("weights", {}).values() for name in source),
            excluded=excluded,
        )

    @classmethod
    def load(cls) -> Catalogue:
        """Reads the catalogue that ships with the package."""
        text = resources.files("stillhouse.search").joinpath("catalogue.json").read_text(encoding="utf-8")
        return cls.from_json(json.loads(text))

    def macs(self, arch: str, network_size: Size, stem: str, classes: int, colour: str = "rgb") -> int:
        """Multiply-accumulates of one forward pass, classifier included.

        Raises:
            UnknownNameError: Not in the catalogue at this size and stem.
        """
        return self.costs(arch, network_size, stem, classes, colour)[0]

    def params(self, arch: str, network_size: Size, stem: str, classes: int, colour: str = "rgb") -> int:
        """Parameters, classifier included.

        Raises:
            UnknownNameError: Not in the catalogue at this size and stem.
        """
        return self.costs(arch, network_size, stem, classes, colour)[1]

    def costs(self, arch: str, network_size: Size, stem: str, classes: int, colour: str = "rgb") -> tuple[int, int]:
        """(MACs, parameters), classifier included, of a network that reads pictures of this colour.

        Raises:
            UnknownNameError: Not in the catalogue at this size and stem.
            UserError: It is not known to read pictures of this colour.
        """
        self.check_arch(arch, colour)
        entry = self.archs[arch]
        body, one = entry.body(network_size, stem), (0, 0) if colour == "rgb" else entry.channel(network_size, stem)
        if body is None or one is None:
            place = f"{network_size}|{stem}"
            if place in entry.excluded:
                raise UserError(
                    f"{arch} failed its check in {said(place)} ({entry.excluded[place]}); choose another size"
                )
            known = [f"{size}|{name}" for size, name in entry.cells]
            raise UnknownNameError.among(f"network size and stem of {arch}", place, known)
        macs, params = body[0] - 2 * one[0], body[1] - 2 * one[1]
        return macs + entry.macs_per_class * classes, params + entry.params_per_class * classes

    def reads(self, name: str, colour: str) -> bool:
        """Whether the costs of an architecture of the catalogue are known for pictures of this colour."""
        return colour == "rgb" or self.archs[name].cells.keys() == self.archs[name].per_channel.keys()

    def check_arch(self, name: str, colour: str = "rgb") -> None:
        """Makes sure that the search knows the architecture's costs for pictures of this colour.

        Raises:
            UnknownNameError: They are not known at all; with near names.
            UserError: They are known for RGB only, or the network failed its check.
        """
        if name not in self.archs and name in self.excluded:
            whys = "; ".join(f"{said(place)}: {why}" for place, why in self.excluded[name].items())
            raise UserError(f"{name} failed its check, so it cannot be a student ({whys}); choose another architecture")
        if name not in self.archs:
            what = "student architecture (it can be a teacher only)" if name in self.names else "architecture"
            raise UnknownNameError.among(what, name, self.archs, "stillhouse catalogue list")
        if not self.reads(name, colour):
            raise UserError(
                f"the costs of {name} must be known for {colour} pictures, but are known for rgb only; if it was added "
                "by an earlier version, add it again, else choose another architecture"
            )

    def check_teacher(self, name: str) -> None:
        """Raises UnknownNameError, with near names, unless a teacher of this name can be built."""
        if name not in self.names:
            raise UnknownNameError.among("teacher", name, self.names)


def lacking(lacks: Mapping[str, Mapping[str, str]], size: Size, stem: str) -> Mapping[str, str]:
    """Precision -> why a network has no file of it at a size in a stem; fp32 always works.

    Args:
        lacks: ``Arch.lacks``: what a cell has no entry of its own for, its stem's tells.
        size: Network size.
        stem: As the network is built with.
    """
    return lacks.get(f"{size}|{stem}", lacks.get(stem, {}))


def said(place: str) -> str:
    """A stem, or a cell ``size|stem``, in words."""
    *size, stem = place.split("|")
    return " at ".join((f"stem {stem}", *size))


def by_pixels(size: Size) -> tuple[int, Size]:
    """Sort key: smaller pictures first."""
    return size.pixels, size
