"""Which backends a test runs with, where it does not run with all of them."""

import pytest

two_backends = pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
