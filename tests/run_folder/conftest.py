"""What several tests of run folders compare with."""

import pytest
from trained import trainer, weights


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The weights at the end of four steps."""
    run = trainer(tmp_path_factory.mktemp("undisturbed"), max_steps=4)
    run.train()
    return weights(run)
