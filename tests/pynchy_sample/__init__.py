"""Plugins of every type, as one package of a plugin author's would hold them, for the end-to-end tests."""
