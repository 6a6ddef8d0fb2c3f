"""What a run's settings may be."""

import pytest
from pydantic import ValidationError

from app.specs.base import LARGEST
from app.specs.training import TrainingSpec


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": {"learning_rate": float("inf")}},
        {"schedule": {"learning_rate": "nan"}},
        {"schedule": {"betas": [5, -3]}},
        {"schedule": {"steps": 10**30}},
        {"schedule": {"batch_size": 4, "micro_batch_size": 8}},
        {"objective": {"temperature": float("inf")}},
        {"objective": {"kind": "ce", "alpha": 0}, "schedule": {"select_by": "kl"}},
        {"schedule": {"patience": 0}},
        {"schedule": {"ranks": 0}},
        {"objective": {"kind": "jsd", "beta": 1.0}},
        {"render": {"max_tokens": LARGEST + 1}},
        {"seed": 10**30},
        {"seed": -1},
    ],
)
def test_what_no_training_can_do_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingSpec.model_validate(values)


def test_the_largest_seed_travels() -> None:
    assert TrainingSpec(seed=LARGEST).seed == 9_007_199_254_740_992
