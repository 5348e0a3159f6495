"""The error of a trial is written into the ledger, MLflow and the report, so it has no secrets."""

import pytest

from kdray.search.driver import failure_reason
from kdray.slots.pool import as_job_error


@pytest.mark.parametrize("as_text", [lambda error: str(as_job_error("trial-000", error)), failure_reason])
def test_the_error_of_a_trial_has_no_secret(as_text) -> None:
    error = OSError("could not connect to postgresql://anna:s3cret@host/x?sslpassword=s3cret")
    assert "could not connect to postgresql://***@host/x?***" in as_text(error)
