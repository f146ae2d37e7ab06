"""What the parity tests share."""

import numpy as np
import pytest


@pytest.fixture
def agree(record_property):
    """Asserts that the largest difference keeps within a bar, and puts it on record."""

    def check(module, ours, theirs, bar, scale=1.0):
        theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
        ours = np.asarray(ours)
        assert ours.shape == theirs.shape
        difference = float(np.abs(ours - theirs).max() / scale)
        record_property("parity", (module, "x".join(map(str, ours.shape)), float(difference), bar))
        assert difference <= bar, f"{module}: {difference:.2e} > {bar:.0e}"

    return check
