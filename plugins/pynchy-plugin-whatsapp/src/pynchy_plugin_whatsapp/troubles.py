"""What WhatsApp says about the connection, in one sentence each. Runs in the worker."""

from __future__ import annotations

from typing import Any

from neonize.proto import Neonize_pb2 as events

from pynchy_plugin_whatsapp.session import NOT_LINKED

#: After these nothing is tried by itself: the worker ends.
FINAL = (events.LoggedOut, events.StreamReplaced, events.TemporaryBan, events.ClientOutdated)

_BANS = {
    events.TemporaryBan.SEND_TO_TOO_MANY_PEOPLE: "for writing to too many people who do not have its number",
    events.TemporaryBan.BLOCKED_BY_USERS: "because too many people have blocked it",
    events.TemporaryBan.CREATED_TOO_MANY_GROUPS: "for too many new groups",
    events.TemporaryBan.SENT_TOO_MANY_SAME_MESSAGE: "for sending the same message too often",
    events.TemporaryBan.BROADCAST_LIST: "for too many messages to a broadcast list",
}


def in_words(event: Any) -> str:
    """One sentence about an event that ends or interrupts the connection."""
    match event:
        case events.LoggedOut():
            return NOT_LINKED
        case events.StreamReplaced():
            return "another program has connected with this WhatsApp session: stop it, or link this one anew"
        case events.TemporaryBan():
            why = _BANS.get(event.Code, "without saying why")
            minutes = max(1, round(ban_seconds(event) / 60))
            return f"WhatsApp has banned this account for {minutes} minutes, {why}: wait until then"
        case events.ClientOutdated():
            return "WhatsApp no longer takes this version of neonize: install a newer pynchy-plugin-whatsapp"
        case events.ConnectFailure():
            reason = events.ConnectFailureReason.Name(event.Reason).lower().replace("_", " ")
            said = f": {event.Message[:200]}" if event.Message else ""
            return f"WhatsApp has refused the connection ({reason}){said}; it is tried again"
        case events.KeepAliveTimeout():
            return "WhatsApp does not answer; it is connected anew"
        case events.StreamError():
            return f"WhatsApp has ended the connection (error {event.Code[:40]}); it is connected anew"
        case _:
            return "the connection to WhatsApp is lost; it is connected anew"


def ban_seconds(event: events.TemporaryBan) -> float:
    """How long a ban lasts: neonize hands on Go's duration, in nanoseconds where it is large."""
    return event.Expire / 1e9 if event.Expire > 10_000_000 else float(event.Expire)
