import pytest

from adaptbs.fastai.fit_run import FitPlan

PLAN = FitPlan(epochs=2, start=8, epoch_samples=100, epoch_steps=13)  # 12 batches of 8, and one of 4


@pytest.mark.parametrize(
    ("samples", "epochs_before", "share"),
    [
        (0, 0, 0),
        (80, 0, 80 / 104 / 2),
        (100, 0, 1 / 2),
        (0, 1, 1 / 2),
        (150, 0, (1 + 50 / 104) / 2),
        (100, 1, 1),
        (300, 0, 1),
    ],
)
def test_the_share_of_the_schedule_is_that_of_the_fixed_fit(samples, epochs_before, share):
    assert PLAN.share_after(samples, epochs_before) == pytest.approx(share, abs=1e-6)
