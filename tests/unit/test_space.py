import json
import math
import time

import pytest

from speed import slowness
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Candidate, Cost, Size
from stillhouse.search.errors import DatasetError, InfeasibleError, UnknownNameError, UserError
from stillhouse.search.job import JobSpec
from stillhouse.search.space import Space, explain_infeasible


def arch(base, *, stems=("stock",), family="cnn", sizes=(32, 48, 64, 96, 128), bias=True):
    """MACs grow with the pixels: ``base`` at 32 pixels, fourfold with another stem."""
    cells = {
        f"{size}|{stem}": {
            "macs": round(base * size.pixels / 32**2 * (1 if stem == "stock" else 4)),
            "params": 1000 * base,
        }
        for size in map(Size.parse, sizes)
        for stem in stems
    }
    return {"family": family, "stems": list(stems), "macs_per_class": 10, "params_per_class": 10 + bias, "cells": cells}


def with_grey(data, names):
    """The same catalogue, where each channel of the picture costs these networks 10 MACs and 9 parameters."""
    archs = {
        name: entry | {"cells": {key: cell | PER_CHANNEL for key, cell in entry["cells"].items()}}
        if name in names
        else entry
        for name, entry in data["archs"].items()
    }
    return Catalogue.from_json({**data, "archs": archs})


PER_CHANNEL = {"macs_per_channel": 10, "params_per_channel": 9}
DATA = {
    "names": ["small_cnn", "tiny_vit", "huge_teacher"],
    "image_sizes": ["64x64", "32x32", "128x128"],
    "archs": {
        "small_cnn": arch(100, stems=("stock", "stride1")),
        "tiny_vit": arch(300, family="vit", sizes=(32, 64), bias=False),
    },
    "code": {"student": "abc"},
    "weights": {"package": ["small_cnn"], "hub": []},
}
CATALOGUE = Catalogue.from_json(DATA)


def counted(macs):
    """The sizes that the shipped catalogue counts, with MACs by height and width; a channel costs one a pixel."""
    sizes = [(side, side) for side in (32, 48, 64, 96, 112, 128, 160, 192, 224)]
    sizes += [(3 * side, 4 * side) for side in (16, 24, 32, 48, 56)] + [(9 * side, 16 * side) for side in (4, 6, 8, 14)]
    cells = {
        f"{h}x{w}|stock": {"macs": macs(h, w), "params": 1000, "macs_per_channel": h * w, "params_per_channel": 9}
        for h, w in sizes
    }
    return {**arch(1), "cells": cells}


OBLONG = Catalogue.from_json(
    {
        **DATA,
        # The MACs of one follow from its grids, those of the other do not: it pads to windows of 56 pixels.
        "archs": {
            "even": counted(lambda h, w: 3 * h * w),
            "odd": counted(lambda h, w: (-(-h // 56)) * (-(-w // 56)) * 9000),
        },
    }
)


def row(side, mean, quality=90, fit="squash", codec="jpeg"):
    return {"fit": fit, "size": f"{side}x{side}", "codec": codec, "quality": quality, "mean_bytes": mean}


SUMMARY = {"classes": ["a", "b", "c"], "curve": [row(32, 400.0), row(64, 1600.0), row(128, 6400.0)]}


def space(summary=SUMMARY, catalogue=CATALOGUE, **spec):
    return Space(catalogue, summary, JobSpec("d", **{"qualities": (), "precisions": ("fp32",), **spec}))


def candidate(name, image, network, stem="stock"):
    return Candidate(name, Size.parse(image), Size.parse(network), stem)


# -------------------------------------------------------------------------------------- catalogue


def test_catalogue_adds_the_classifier():
    assert CATALOGUE.macs("small_cnn", Size(32, 32), "stride1", 7) == 400 + 10 * 7
    assert CATALOGUE.params("small_cnn", Size(32, 32), "stock", 7) == 100_000 + 10 * 7 + 7
    assert CATALOGUE.params("tiny_vit", Size(32, 32), "stock", 7) == 300_000 + 10 * 7


def test_catalogue_reads_names_sizes_code_and_weights():
    assert [str(size) for size in CATALOGUE.image_sizes] == ["32x32", "64x64", "128x128"]
    assert CATALOGUE.code == {"student": "abc"}
    assert CATALOGUE.pretrained == {"small_cnn"}


def test_catalogue_is_loaded_from_the_package(tmp_path, monkeypatch):
    (tmp_path / "catalogue.json").write_text(json.dumps(DATA), encoding="utf-8")
    monkeypatch.setattr("stillhouse.search.catalogue.resources.files", {"stillhouse.search": tmp_path}.get)
    assert Catalogue.load() == CATALOGUE


def test_catalogue_refuses_unknown_names_with_near_ones():
    with pytest.raises(UnknownNameError, match="did you mean small_cnn"):
        CATALOGUE.check_arch("smal_cnn")
    with pytest.raises(UnknownNameError, match="teacher only"):
        CATALOGUE.check_arch("huge_teacher")
    with pytest.raises(UnknownNameError, match="did you mean huge_teacher"):
        CATALOGUE.check_teacher("huge_teecher")
    with pytest.raises(UnknownNameError, match=r"network size and stem of tiny_vit '96x96\|stock'"):
        CATALOGUE.macs("tiny_vit", Size(96, 96), "stock", 2)
    CATALOGUE.check_teacher("huge_teacher")


def test_of_many_names_the_nearest_are_told_and_what_lists_them():
    many = {f"net_{number:03}": DATA["archs"]["tiny_vit"] for number in range(60)}
    with pytest.raises(UnknownNameError) as caught:
        Catalogue.from_json({**DATA, "archs": many}).check_arch("foo")
    said = str(caught.value)
    assert said.count("net_") == 3
    assert "none of the 60 known ones is like it" in said
    assert "stillhouse catalogue list lists all" in said


# ------------------------------------------------------------------------------------- candidates


def test_candidates_are_all_cells_up_to_four_times_the_picture():
    found = {(str(c.image_size), str(c.network_size)) for c in space(archs=("small_cnn",)).candidates}
    assert found == {
        *(("32x32", f"{n}x{n}") for n in (32, 48, 64, 96, 128)),
        *(("64x64", f"{n}x{n}") for n in (64, 96, 128)),
        ("128x128", "128x128"),
    }
    assert {c.stem for c in space(archs=("small_cnn",)).candidates} == {"stock", "stride1"}
    assert {c.stem for c in space(archs=("tiny_vit",)).candidates} == {"stock"}


def test_pictures_larger_than_the_teachers_are_left_out_unless_named():
    assert max(c.image_size for c in space(teacher_size=64).candidates) == Size(64, 64)
    assert {c.image_size for c in space(teacher_size=64, image_sizes=("128",)).candidates} == {Size(128, 128)}


def test_exact_image_size_of_the_budget_joins_the_catalogues():
    found = space(archs=("small_cnn",), budget=Budget(max_image_size=Size(50, 50)))
    assert {c.network_size.height for c in found.candidates if c.image_size == Size(50, 50)} == {64, 96, 128}
    assert {c.image_size.height for c in found.feasible} == {32, 50}


@pytest.mark.parametrize(
    ("limit", "teacher", "shaped"),
    [
        ("48x64", 192, {"48x64", "36x48"}),  # 24x32 has fewer pixels than the least of the catalogue
        ("92x112", 192, {"92x112", "68x84", "46x56", "34x42"}),
        ("112x92", 192, {"112x92", "84x68", "56x46", "42x34"}),
        ("240x320", 192, {"120x160", "90x120", "60x80"}),  # what is larger than the teacher's is left out
        ("64x64", 192, set()),
        ("20x30", 192, {"20x30"}),
    ],
)
def test_an_oblong_limit_joins_with_parts_of_its_shape(limit, teacher, shaped):
    found = space(catalogue=OBLONG, teacher_size=teacher, budget=Budget(max_image_size=Size.parse(limit)))
    oblong = {c.image_size for c in found.candidates if c.image_size.height != c.image_size.width}
    assert {str(size) for size in oblong} == shaped
    assert {Size(32, 32), Size(64, 64)} <= {c.image_size for c in found.candidates}
    for picture in oblong:
        assert found.sent_bytes(picture)[90] == pytest.approx(400 * picture.pixels / 32**2)


def test_oblong_pictures_are_computed_at_their_own_shape_where_its_cost_is_known():
    found = space(catalogue=OBLONG, image_sizes=("92x112",)).candidates
    grids = {name: [str(c.network_size) for c in found if c.arch == name] for name in OBLONG.archs}
    assert grids == {"even": ["96x112", "144x168", "184x224"], "odd": ["112x112", "192x192", "224x224"]}
    costs = {c.network_size: space(catalogue=OBLONG, image_sizes=("92x112",)).cost(c) for c in found}
    assert costs[Size(96, 112)].macs == 3 * 96 * 112 + 30
    assert costs[Size(96, 112)].image_size == Size(92, 112)
    assert costs[Size(96, 112)].params == 1000 + 33


def test_grey_pictures_are_computed_at_their_own_shape_too():
    found = space(GREY, OBLONG, image_sizes=("50x61",), colour="grey", archs=("even",))
    assert [str(c.network_size) for c in found.candidates] == ["56x64", "80x96", "104x128", "152x184"]
    assert found.cost(found.candidates[0]).macs == 3 * 56 * 64 + 30 - 2 * 56 * 64
    assert found.cost(found.candidates[0]).image_bytes == found.sent_bytes(Size(50, 61))[90]


@pytest.mark.parametrize(
    ("image", "grids"),
    [
        ("48x64", ["48x64", "96x128", "144x192"]),  # 3:4
        ("47x64", ["48x64", "96x128", "144x192"]),  # nearly so
        ("36x64", ["36x64", "126x224"]),  # 9:16
        ("54x96", ["126x224"]),
        ("40x64", ["64x64", "96x96", "128x128"]),  # a shape of which there is none
        ("100x134", ["144x192"]),
        ("64x48", ["64x64", "96x96", "128x128"]),  # upright: likewise
        ("64x64", ["64x64", "96x96", "128x128"]),
        ("128x128", ["128x128"]),
    ],
)
def test_a_picture_is_computed_on_grids_of_its_own_shape(image, grids):
    sizes = (32, 48, 64, 96, 128, "36x64", "126x224", "48x64", "96x128", "144x192")
    catalogue = Catalogue.from_json({**DATA, "archs": {"small_cnn": arch(100, sizes=sizes)}})
    found = space(catalogue=catalogue, image_sizes=(image,)).candidates
    assert [str(c.network_size) for c in found] == grids


def test_oblong_pictures_are_computed_on_a_grid_that_covers_them():
    found = space(archs=("tiny_vit",), image_sizes=("48x64",)).candidates
    assert [str(c) for c in found] == ["tiny_vit 48x64->64x64 stock"]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"archs": ("tiny_vitt",)}, UnknownNameError, "did you mean tiny_vit"),
        ({"image_sizes": ("200",)}, UserError, "200x200 is larger than every network size.*128x128"),
        ({"classes": 4}, UserError, "classes must be <= 3"),
        ({"codec": "webp"}, DatasetError, "fit squash and codec webp"),
        ({"quality": 75}, DatasetError, "quality 90 only"),
    ],
)
def test_bad_requests_are_named(spec, error, message):
    with pytest.raises(error, match=message):
        space(**spec)


# ------------------------------------------------------------------------------------------ costs


def test_cost_is_exact_and_ignores_knobs():
    plain = candidate("small_cnn", 64, 128, "stride1")
    with_knobs = Candidate(plain.arch, plain.image_size, plain.network_size, plain.stem, (("lr", 0.1),))
    expected = Cost(macs=6400 + 30, params=100_033, image_bytes=pytest.approx(1600), image_size=Size(64, 64))
    assert space().cost(plain) == space().cost(with_knobs) == expected
    assert space(classes=2).cost(plain).macs == 6400 + 20
    assert space(precisions=("fp32",)).bound(plain).model_bytes == math.ceil(3.6 * 100_033)
    assert space(precisions=("fp32", "int8")).bound(plain).model_bytes == math.ceil(0.9 * 100_033)
    with pytest.raises(UnknownNameError):
        space().cost(candidate("small_cnn", 64, 65))


def test_a_space_tells_which_bytes_are_extrapolated():
    assert space().extrapolated(Size(200, 200)) and not space().extrapolated(Size(64, 64))


# ------------------------------------------------------------------------------------------- grey

GREY = {
    **SUMMARY,
    "curve": [*SUMMARY["curve"], *({**row(side, 3.0 * side), "colour": "grey"} for side in (32, 64, 128))],
}


def test_precisions_that_a_network_lacks_bound_no_file():
    lacks = {"stride1": {"int8": "too far from fp32"}, "96x96|stride1": {}}
    lacking = {**DATA["archs"]["small_cnn"], "lacks": lacks}
    catalogue = Catalogue.from_json({**DATA, "archs": {"small_cnn": lacking}})
    found = space(catalogue=catalogue, precisions=("fp32", "fp16", "int8"))
    stock, fine = (candidate("small_cnn", 64, 64, stem) for stem in ("stock", "stride1"))
    assert (found.precisions(stock), found.precisions(fine)) == (("fp32", "fp16", "int8"), ("fp32", "fp16"))
    assert found.bound(stock).model_bytes == math.ceil(0.9 * 100_033)
    assert found.bound(fine).model_bytes == math.ceil(1.8 * 100_033)
    assert len(found.precisions(candidate("small_cnn", 64, 96, "stride1"))) == 3, "here all three work"


def test_a_network_that_failed_its_check_is_refused_with_the_reason():
    catalogue = Catalogue.from_json({**DATA, "excluded": {"huge_teacher": {"stock": "exports: no such operator"}}})
    with pytest.raises(UserError, match=r"huge_teacher failed its check.*stem stock: exports: no such operator"):
        space(catalogue=catalogue, archs=("huge_teacher",))


def test_a_cell_that_failed_its_check_is_no_candidate_even_where_its_costs_are_known():
    even, failed = counted(lambda h, w: h * w), {"even": {"40x56|stock": "exports: no such operator"}}
    known = [Catalogue.from_json({**DATA, "archs": {"even": even}, "excluded": each}) for each in ({}, failed)]
    spaces = [space(catalogue=each, archs=("even",), image_sizes=("40x56",)) for each in known]
    whole, less = ({entry.network_size for entry in each.candidates} for each in spaces)
    assert Size(40, 56) in whole and less == whole - {Size(40, 56)}
    with pytest.raises(UserError, match=r"even failed its check in stem stock at 40x56 \(exports: no such operator\)"):
        known[1].costs("even", Size(40, 56), "stock", 2)


def test_grey_costs_two_channels_less_and_the_bytes_of_grey_files():
    catalogue, wanted = with_grey(DATA, DATA["archs"]), candidate("small_cnn", 64, 64, "stride1")
    colour, grey = (space(GREY, catalogue, colour=name).cost(wanted) for name in ("rgb", "grey"))
    assert (colour.macs - grey.macs, colour.params - grey.params) == (20, 18)
    assert (colour.image_bytes, grey.image_bytes) == (pytest.approx(1600), pytest.approx(192))
    assert space(GREY, colour="rgb").cost(wanted) == colour == space().cost(wanted)


def test_networks_that_read_colours_only_are_left_out_of_grey_jobs_unless_named():
    catalogue = with_grey(DATA, ["tiny_vit"])
    assert {each.arch for each in space(GREY, catalogue, colour="grey").candidates} == {"tiny_vit"}
    with pytest.raises(
        UserError, match="costs of small_cnn must be known for grey pictures, but are known for rgb only"
    ):
        space(GREY, catalogue, colour="grey", archs=("small_cnn",))


def test_a_data_set_without_grey_figures_must_be_ingested_again():
    with pytest.raises(DatasetError, match=r"not measured for grey, fit squash and codec jpeg.*ingest it again"):
        space(SUMMARY, with_grey(DATA, DATA["archs"]), colour="grey")


# ------------------------------------------------------------------------------------ feasibility


@pytest.mark.parametrize(
    ("budget", "keeps"),
    [
        (Budget(max_macs=1000), lambda c: space().cost(c).macs <= 1000),
        (Budget(max_params=200_000), lambda c: c.arch == "small_cnn"),
        (Budget(max_model_bytes=400_000), lambda c: c.arch == "small_cnn"),
        (Budget(max_image_bytes=1700), lambda c: c.image_size.height <= 64),
        (Budget(max_image_size=Size(64, 64)), lambda c: c.image_size.height <= 64),
        (Budget(max_latency_ms=0.001, min_accuracy=0.99), bool),
    ],
)
def test_feasible_are_those_within_the_known_limits(budget, keeps):
    found = space(budget=budget)
    assert found.feasible == tuple(c for c in found.candidates if keeps(c))
    assert found.feasible
    found.check()


def test_a_budget_that_one_limit_makes_impossible_is_explained():
    impossible = space(budget=Budget(max_macs=13))
    with pytest.raises(InfeasibleError) as caught:
        impossible.check()
    assert str(caught.value) == (
        f"no candidate meets the budget: max_macs 13 rules out all {len(impossible.candidates)} candidates. "
        "The nearest is small_cnn at 32x32->32x32 stock, which needs max_macs >= 130 (x10)"
    )
    assert space(budget=Budget(max_macs=130)).feasible


def test_limits_that_bind_together_are_told_apart():
    budget = Budget(max_macs=100, max_image_bytes=500)
    with pytest.raises(InfeasibleError, match=r"max_macs 100 rules out all 21 candidates; .*") as caught:
        space(budget=budget).check()
    assert "max_image_bytes 500 rules out 9 of 21 candidates; 12 would be left by lifting max_macs alone" in str(
        caught.value
    )
    with pytest.raises(InfeasibleError, match="no single limit lifted would be enough"):
        space(budget=Budget(max_macs=100, max_params=100)).check()


def test_what_the_nearest_needs_is_enough():
    costs = [
        (candidate("a", 32, 32), Cost(macs=10, image_bytes=612.3, latency_ms=3.001)),
        (candidate("b", 32, 32), Cost(macs=400, image_bytes=601.0, latency_ms=1.0)),
    ]
    message = explain_infeasible(costs, Budget(max_macs=100, max_image_bytes=600, max_latency_ms=2.0))
    assert message.endswith(
        "The nearest is a at 32x32->32x32 stock, which needs max_latency_ms >= 3.01 (x1.51) "
        "and max_image_bytes >= 613 (x1.03)"
    )
    with pytest.raises(ValueError, match="each beyond a limit"):
        explain_infeasible(costs, Budget())


# --------------------------------------------------------------------------------------- distance


def test_nearest_is_the_proposal_itself_then_its_neighbours():
    found = space()
    wanted = candidate("small_cnn", 64, 96)
    assert found.nearest(wanted, ()) == wanted
    second = found.nearest(wanted, {wanted})
    assert second is not None and second.arch == "small_cnn" and second != wanted
    assert found.nearest(candidate("small_cnn", 64, 80), ()) == candidate("small_cnn", 64, 96)
    assert found.nearest(wanted, set(found.feasible)) is None


def test_cheapest_of_each_architecture_comes_cheapest_first():
    assert space().cheapest_by_arch() == (candidate("small_cnn", 32, 32), candidate("tiny_vit", 32, 32))


def test_thousands_of_cells_take_a_fraction_of_a_second():
    sizes = tuple(range(32, 256, 8))
    data = DATA | {
        "image_sizes": [f"{side}x{side}" for side in sizes],
        "archs": {f"net{i}": arch(100 + i, stems=("stock", "stride1"), sizes=sizes) for i in range(40)},
    }
    catalogue = Catalogue.from_json(data)
    started = time.process_time()
    found = space(catalogue=catalogue, teacher_size=256, budget=Budget(max_macs=3000))
    feasible = found.feasible
    seconds = (time.process_time() - started) / slowness()
    assert len(found.candidates) > 5000 and 0 < len(feasible) < len(found.candidates)
    assert seconds < 1.0, f"{seconds:.2f} s of CPU"
