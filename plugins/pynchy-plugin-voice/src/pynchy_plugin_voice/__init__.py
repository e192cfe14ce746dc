"""Hearing for the agent: an MCP server with the tool `transcribe_voice`, and a skill that says when to use it."""

from pynchy_plugin_voice.plugin import VoicePlugin

__all__ = ["VoicePlugin"]
