"""A cap leaves out prompts of every source and category alike."""

from __future__ import annotations

from collections import Counter

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from holdfast.datasets.sampling import capped, spread


def test_prompts_sorted_by_topic_are_capped_over_all_topics():
    topics = [f"topic {i // 100}" for i in range(1000)]
    rows = pd.DataFrame({"prompt": range(1000), "source": "mine", "category": topics})
    kept = capped(rows, 50, seed=0)
    assert Counter(kept["category"]) == dict.fromkeys(dict.fromkeys(topics), 5)
    assert kept["prompt"].is_monotonic_increasing
    assert set(kept["prompt"]) != set(capped(rows, 50, seed=1)["prompt"])
    assert capped(rows, None, 0) is rows


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=80), st.data(), st.integers(0, 2**32))
def test_every_stratum_gets_its_share(strata, data, seed):
    most = data.draw(st.integers(1, len(strata)))
    kept = spread(strata, most, seed)
    assert len(kept) == most
    assert kept == sorted(set(kept)) == spread(strata, most, seed)
    assert set(spread(strata, most - 1, seed)) < set(kept)
    found, whole = Counter(strata[place] for place in kept), Counter(strata)
    for stratum, count in whole.items():
        assert abs(found[stratum] - most * count / len(strata)) < 1 + len(whole) / 2
