"""Costs at sizes that were not counted, against networks whose costs are written out here."""

import math

import pytest

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Size
from stillhouse.search.formula import Formula, Formulas

SQUARE, THREE_FOURTHS = (32, 48, 64, 96, 112, 128, 160, 192, 224), (16, 24, 32, 48, 56)
LISTED = (
    *(Size(side, side) for side in SQUARE),
    *(Size(3 * side, 4 * side) for side in THREE_FOURTHS),
    *(Size(9 * side, 16 * side) for side in (4, 6, 8, 14)),
)
WHOLE = tuple(size for size in LISTED if size.height % 8 == size.width % 8 == 0)
ASKED = (Size(40, 48), Size(56, 64), Size(96, 112), Size(104, 200), Size(184, 224), Size(88, 72))


def padded(size: Size) -> int:
    """Convolutions of strides 2 to 32 that pad, and a classifier."""
    return 640 + sum(97 * s * math.ceil(size.height / s) * math.ceil(size.width / s) for s in (2, 4, 8, 16, 32))


def patched(size: Size) -> int:
    """Convolutions that leave out what their patches do not reach."""
    return 640 + sum(89 * s * (size.height // s) * (size.width // s) for s in (4, 8, 16, 32))


def attending(size: Size) -> int:
    """Attention at strides 16 and 32."""
    grids = [math.ceil(size.height / s) * math.ceil(size.width / s) for s in (16, 32)]
    return padded(size) + sum(2 * 31 * grid**2 for grid in grids)


def windowed(size: Size) -> int:
    """Attention inside windows of 7 places at stride 8, which the grid is padded to."""
    sides = [math.ceil(math.ceil(side / 8) / 7) for side in (size.height, size.width)]
    return padded(size) + 2 * 49**2 * 31 * sides[0] * sides[1]


@pytest.mark.parametrize("cost", [padded, patched, attending])
@pytest.mark.parametrize("factor", [1, 50_000])
def test_a_formula_gives_what_would_be_counted(cost, factor) -> None:
    formula = Formula.through({size: factor * cost(size) for size in WHOLE})
    assert formula is not None
    assert [formula.at(size) for size in (*WHOLE, *ASKED)] == [factor * cost(size) for size in (*WHOLE, *ASKED)]


def test_what_follows_no_formula_has_none() -> None:
    assert Formula.through({size: windowed(size) for size in WHOLE}) is None
    points = {size: padded(size) for size in WHOLE}
    assert Formula.through(points | {WHOLE[3]: padded(WHOLE[3]) + 1}) is None, "one that is off disproves it"


def test_too_few_counted_costs_prove_nothing() -> None:
    squares = [size for size in WHOLE if size.height == size.width]
    assert Formula.through({size: padded(size) for size in squares[:5]}) is None
    assert Formula.through({}) is None


def test_what_the_counted_costs_leave_open_is_not_told() -> None:
    """All sides are multiples of 16: what is done at stride 8 and what is done at 16 cannot be told apart."""
    coarse = [Size(height, width) for height in range(32, 225, 32) for width in range(32, 225, 16)]
    formula = Formula.through({size: padded(size) for size in coarse})
    assert formula is not None
    assert formula.at(Size(96, 112)) == padded(Size(96, 112))
    assert formula.at(Size(40, 56)) is None


def test_sizes_keep_to_the_steps_and_the_range_of_what_was_counted() -> None:
    known = Formulas({(size, stem): (padded(size), 7) for size in LISTED for stem in ("stock", "stride1")})
    assert known.at(Size(96, 112), "stock") == (padded(Size(96, 112)), 7)
    assert [known.at(Size(*sides), "stock") for sides in ((92, 112), (24, 32), (232, 224))] == [None] * 3
    assert known.at(Size(96, 112), "half_patch") is None
    assert known.covering(Size(92, 112), "stride1") == Size(96, 112)
    assert known.covering(Size(92, 230), "stock") is None


def test_a_patch_divides_the_sides() -> None:
    """A transformer with patches of 16: parameters grow with the grid, by an embedding of each place."""
    whole = [size for size in LISTED if size.height % 16 == size.width % 16 == 0]
    grids = {size: size.pixels // 256 for size in whole}
    known = Formulas({(size, "stock"): (5 * grid + 3 * grid**2, 100 + 192 * grid) for size, grid in grids.items()})
    assert known.at(Size(96, 112), "stock") == (5 * 42 + 3 * 42**2, 100 + 192 * 42)
    assert known.at(Size(72, 96), "stock") is None
    assert known.covering(Size(92, 100), "stock") == Size(96, 112)


def test_most_networks_that_ship_have_formulas() -> None:
    shipped, without = Catalogue.load(), set()
    for name, entry in shipped.archs.items():
        for stem in entry.stems:
            if entry.body(Size(96, 112), stem) is None:
                without.add(name)
            else:
                assert entry.channel(Size(96, 112), stem) is not None, name
    assert len(without) <= 5, without
