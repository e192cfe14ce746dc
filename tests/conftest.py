"""What the tests share: a home of their own, no model credential, and the runtimes that run here."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import hypothesis
import pytest
from support import CREDENTIAL, RUNTIMES, StartService

from pynchy.agent_environment import AgentEnvironment
from pynchy.app import Service
from pynchy.config import MODEL_VARIABLES, load_settings
from pynchy.model_gateway import Upstream
from pynchy.plugin import ContainerRuntime, PluginRegistry
from pynchy.runtime import reset_runtime
from pynchy.testing import ScriptedModel

# Where the tests run in the background, Ctrl-C is ignored, and would be by everything that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Looked up before any test changes HOME: filling one takes half a minute and 400 MB.
_AGENT_ENVIRONMENT = AgentEnvironment().path

# How long an example takes, and its making, is up to what else the machine does.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

#: What the machine must have, and which Docker engine may be restarted.
_ABOUT_THE_MACHINE = ("PYNCHY_REQUIRE", "PYNCHY_TEST_ENGINE")


@pytest.fixture
def anyio_backend() -> str:
    """Everything here is asyncio's."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty home, no credential, no setting of the person who runs the tests."""
    for name in list(os.environ):
        if name in MODEL_VARIABLES or (name.startswith("PYNCHY_") and name not in _ABOUT_THE_MACHINE):
            monkeypatch.delenv(name)
    for name in ("CONTAINER_RUNTIME", "CONTAINER_IMAGE", "MAX_CONCURRENT_CONTAINERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYNCHY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYNCHY_AGENT_ENV", str(_AGENT_ENVIRONMENT))
    reset_runtime()
    yield
    reset_runtime()


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As `tmp_path`, with a path that leaves room for a socket's name in a home that is further down."""
    with tempfile.TemporaryDirectory(prefix="pynchy-") as folder:
        monkeypatch.setenv("PYNCHY_HOME", f"{folder}/home")
        yield Path(folder)


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in RUNTIMES])
def runtime(request: pytest.FixtureRequest) -> ContainerRuntime:
    """Each runtime that runs here in turn."""
    return RUNTIMES[request.param]()


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    """A scripted model on loopback."""
    async with ScriptedModel() as model:
        yield model


@pytest.fixture
def start_service(model: ScriptedModel) -> StartService:
    """Start a service on this test's home, with the scripted model behind a credential that must not leak."""

    @asynccontextmanager
    async def start(runtime: ContainerRuntime, registry: PluginRegistry | None = None) -> AsyncIterator[Service]:
        upstream = Upstream(model.base_url, ("x-api-key", CREDENTIAL))
        async with Service.start(load_settings(), upstream, registry or PluginRegistry(), runtime) as service:
            yield service

    return start
