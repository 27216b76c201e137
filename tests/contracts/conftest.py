"""Every contract test runs on two EVMs; each test begins at genesis."""

from collections.abc import Iterator

import pytest
from factory_evm import ANVIL, VALIDATORS, Anvil, Evm, PyEvm


@pytest.fixture(scope="session", params=["py-evm", "anvil"])
def running_evm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evm]:
    if request.param == "anvil" and ANVIL is None:
        pytest.skip("anvil is not installed: run `npm ci`")
    evm: Evm = PyEvm() if request.param == "py-evm" else Anvil(tmp_path_factory.mktemp("anvil"))
    yield evm
    evm.close()


@pytest.fixture
def evm(running_evm: Evm) -> Evm:
    running_evm.reset(VALIDATORS)
    return running_evm
