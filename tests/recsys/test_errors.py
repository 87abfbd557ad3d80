import pytest

from recsys import errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.InputError("x"), 2),
        (errors.UnknownItemError("x"), 2),
        (errors.StageError("x"), 1),
        (errors.ReleaseError("x"), 1),
        (errors.TrackingError("x"), 1),
        (errors.RejectedError("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_exit_code_says_who_can_mend_it(error, exit_code):
    """2 where the person who called can change the input, 1 where the work itself failed."""
    assert isinstance(error, errors.RecsysError)
    assert error.exit_code == exit_code
