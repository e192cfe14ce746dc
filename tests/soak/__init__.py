"""A chat service and its people outside, a host that is made to suffer, and a count of what came of it."""
