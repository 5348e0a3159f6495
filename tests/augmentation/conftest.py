"""The tiny models, once a session."""

import pytest

from kdray.models.pretrained import Pretrained
from tests.augmentation.tiny import save_masked_lm, save_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return save_masked_lm(tmp_path_factory.mktemp("masked"))
