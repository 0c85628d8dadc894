"""What stages tokenise goes into a cache of the test run, not into the user's."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """The cache folder of the test run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XWIN_CACHE", str(folder))
        yield folder
