"""Laws of the cut and of views that must hold for any input."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.distill.data.splits import FRACTIONS, assign, cut
from stillhouse.distill.data.views import ViewPolicy, Views

labelled = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30).map("{:02d}".format)), max_size=60)
given_splits = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "val", "test"]), st.integers(0, 9).map(str)), max_size=40
)


@given(labelled)
def test_equal_contents_fall_into_one_split(items: list[tuple[str, str]]) -> None:
    splits = cut([label for label, _ in items], [content for _, content in items], FRACTIONS)
    where = defaultdict(set)
    for (_, content), split in zip(items, splits, strict=True):
        where[content].add(split)
    assert all(len(found) == 1 for found in where.values())


@given(labelled, st.randoms())
def test_the_cut_does_not_depend_on_order(items: list[tuple[str, str]], random: object) -> None:
    def placed(rows: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        found = cut([label for label, _ in rows], [content for _, content in rows], FRACTIONS)
        return dict(zip(rows, found, strict=True))

    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert placed(items) == placed(shuffled)


@given(given_splits)
def test_no_content_is_left_in_two_splits_and_test_is_kept(items: list[tuple[str, str, str]]) -> None:
    labels, given_, contents = ([item[k] for item in items] for k in range(3))
    splits, leaks = assign(labels, given_, contents)
    where = defaultdict(set)
    for content, split in zip(contents, splits, strict=True):
        if split is not None:
            where[content].add(split)
    assert all(len(found) == 1 for found in where.values())
    assert all(split == "test" for was, split in zip(given_, splits, strict=True) if was == "test")
    left_out = {index for index, split in enumerate(splits) if split is None}
    assert left_out <= {index for group in leaks for index in group}


@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=20),
    st.integers(0, 1000),
    st.integers(0, 2**31),
    st.permutations(range(20)),
)
def test_a_view_is_a_function_of_its_picture_alone(indices: list[int], view: int, seed: int, order: list[int]) -> None:
    views = Views("digest", seed)
    moved = [indices[k] for k in order if k < len(indices)]
    batch, other = views.draw(np.array(indices), view), views.draw(np.array(moved), view)
    for place, index in enumerate(moved):
        first = indices.index(index)
        for name in ("top", "left", "height", "width", "flip", "brightness", "contrast"):
            assert getattr(other, name)[place] == getattr(batch, name)[first]


fractions = st.floats(0.01, 1.0)


@given(fractions, fractions, st.floats(0, 0.99), st.booleans())
def test_a_policy_survives_json_and_crops_stay_inside(one: float, two: float, jitter: float, flip: bool) -> None:
    policy = ViewPolicy(scale_min=min(one, two), scale_max=max(one, two), brightness=jitter, flip=flip)
    assert ViewPolicy.from_json(policy.to_json()) == policy
    batch = Views("digest", 0, policy).draw(np.arange(50), 0)
    assert (batch.top + batch.height).max() <= 1 + 1e-12
    assert (batch.left + batch.width).max() <= 1 + 1e-12
    assert batch.height.min() > 0
    assert flip or not batch.flip.any()
