"""Start the runner: take the pipes first, be the container's init, import everything else afterwards."""

from agent_runner.host_link import claim_pipes
from agent_runner.init import become_init


def run() -> None:
    """Run one agent on this process's stdin and stdout."""
    pipes = claim_pipes()
    become_init(pipes)
    from agent_runner.main import main

    main(*pipes)


if __name__ == "__main__":
    run()
