"""The channels that are built in: the terminal. Every other is a plugin."""
