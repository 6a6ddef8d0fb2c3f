"""A project of the app's own database with made uploads and versions."""

from pathlib import Path

import pytest

from app.web.deps import Services
from tests.app.datasets.made import Made


@pytest.fixture
def made(parts: Services, tmp_path: Path) -> Made:
    return Made(parts, tmp_path)
