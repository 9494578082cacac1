"""What the tests of the deployment share: an engine, the images built in it, and the profile without a GPU, up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.engine import Engine, OwnDaemon, running_engine
from tests.deploy.images import build_arguments, provide_base
from tests.deploy.stack import FILES, Stack, compose_command

HOST_NETWORK = """services:
  export-cpu: {build: {network: host}}
  triton-cpu: {build: {network: host}}
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Docker engine: the one that answers, else one of our own."""
    found = running_engine()
    daemon = OwnDaemon(tmp_path_factory.mktemp("docker"))
    engine = found or daemon.start()
    try:
        if compose_command(engine.env) is None:
            pytest.skip("neither docker compose nor docker-compose is installed")
        yield engine
    finally:
        daemon.stop()


@pytest.fixture(scope="session")
def images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engine with the images of the profile `cpu`, built by Compose from the project's Dockerfiles."""
    provide_base(engine)
    # The wheels are served on this machine's loopback, which a build reaches only over the host's network.
    network = tmp_path_factory.mktemp("build") / "network.yml"
    network.write_text(HOST_NETWORK)
    with build_arguments(engine) as arguments:
        stack = Stack(engine, FILES, network if engine.own else None)
        stack.compose("build", *arguments, timeout=1200)
    return engine


@pytest.fixture(scope="session")
def stack(images: Engine) -> Iterator[Stack]:
    """`docker compose --profile cpu up`, healthy, with published ports."""
    stack = Stack(images, FILES)
    try:
        stack.compose("up", "-d", timeout=300)
        stack.wait_healthy()
        yield stack
    finally:
        stack.down()
