"""WhatsApp chats for Pynchy, as a linked device of your account."""

from pynchy_plugin_whatsapp.plugin import WhatsAppPlugin

__all__ = ["WhatsAppPlugin"]
