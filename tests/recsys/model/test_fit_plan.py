import pytest

from recsys.model.fit_plan import HistoryPhase, NewItemPhase, PairPhase, Passes, final_plan, validation_plan
from tests.recsys.model.block_world import BY_BRAND, make_config


def test_validation_plan_has_the_maximum_number_of_passes():
    plan = validation_plan(make_config(**BY_BRAND, passes=7, history_passes=3))
    assert plan.target == "validation"
    assert plan.phases == (
        PairPhase(7, validate=True, anchor_power=1.0),
        HistoryPhase(3, validate=True, recency=None),
    )


def test_final_plan_has_the_selected_values_and_no_validation():
    plan = final_plan(make_config(**BY_BRAND, passes=7, history_passes=3), Passes(pairs=4, histories=2), recency=0.3)
    assert plan.target == "test"
    assert plan.phases == (
        PairPhase(4, validate=False, anchor_power=1.0),
        HistoryPhase(2, validate=False, recency=0.3),
        NewItemPhase(anchor_power=0.5),
    )


def test_one_exponent_weighs_the_anchors_of_both_pair_phases():
    pairs, _, new_items = final_plan(make_config(**BY_BRAND, anchor_power=0.6), Passes(2, 1)).phases
    assert (pairs.anchor_power, new_items.anchor_power) == (0.6, 0.3)


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({**BY_BRAND, "history_passes": 0}, HistoryPhase),
        ({**BY_BRAND, "new_items": False}, NewItemPhase),
        ({"roles": {}}, NewItemPhase),
        ({"roles": {"title": "name"}}, NewItemPhase),
    ],
    ids=["no history passes", "no new items", "no columns", "title only"],
)
def test_plan_omits_a_phase(settings, absent):
    config = make_config(**settings)
    passes = Passes(config.train.passes, config.train.history_passes)
    assert absent not in {type(phase) for phase in final_plan(config, passes).phases}


@pytest.mark.parametrize(
    "roles",
    [{"multi_categorical": ("a",)}, {"numeric": ("a",)}, {"text": ("a",)}],
    ids=["multi-categorical", "numeric", "text"],
)
def test_any_feature_serves_new_items(roles):
    assert NewItemPhase(anchor_power=0.5) in final_plan(make_config(roles=roles), Passes(2, 1)).phases


def test_plan_for_labeled_pairs_has_no_history_phase():
    config = make_config(**BY_BRAND, history_passes=3)
    labeled = config.model_copy(update={"data": config.data.model_copy(update={"labeled_pairs": "labeled.csv"})})
    assert [type(phase) for phase in validation_plan(labeled).phases] == [PairPhase, NewItemPhase]


def test_dropped_history_phase_is_not_part_of_the_final_fit():
    plan = final_plan(make_config(history_passes=3), Passes(pairs=4, histories=0), recency=0.3)
    assert [type(phase) for phase in plan.phases] == [PairPhase]
