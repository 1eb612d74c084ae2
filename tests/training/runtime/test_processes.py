"""What is said where another process is lost."""

import pytest

from training.runtime.processes import _lost

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"{GLOO}unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation to complete", "silent after 3 s"),
        ("Application timeout caused pair closure", "silent for too long"),
        (f"{GLOO}pair.cc:536] Connection closed by peer [127.0.0.1]:1234", "its connection is closed"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
        ("Timed out waiting 100ms for something else", None),
    ],
)
def test_errors_of_gloo_are_told_from_others(said: str, reason: str | None) -> None:
    assert _lost(said) == reason
