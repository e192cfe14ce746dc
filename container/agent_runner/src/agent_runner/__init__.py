"""The agent's side of Pynchy: the Claude Agent SDK, run inside a container, at the end of a pipe."""
