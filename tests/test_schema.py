"""Every database that a released version has left behind opens with every row, and what it meant."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored import column, damage, raw, rows

from pynchy import schema
from pynchy.messages import Outcome
from pynchy.schema import MIGRATIONS
from pynchy.store import Store, StoreError
from pynchy.types import ExtraMount, Group

pytestmark = pytest.mark.anyio

#: The SHA-256 of each migration, as it was when it was added.
DIGESTS = (
    "ae8d544c7f7866bc3c993c912e762653ade9fe9437f6b3a3294000e052482b1f",
    "7988920fb2ca87ae73b8937f34fd25b7cc6d4ff680f49eeef3d62be6b65d6407",
    "8e48d630f9e70edcc008ffd3204e6a10db964a244643f0667ed792346ac53dec",
    "2c3affe586e9dc3e4ec9c0c3455169c15d2b68c0dc7b022ec5843a3c06c61ee5",
    "5f058def766a0d974bccca07050b1f64fcae1a4dc7b502582a9f3a640d6d6874",
    "494bdcbf7ff4d4c50963b515f7d3f67f8f4ecd032edaf3f271bae2ba8b48ad75",
)

_FIFTH = """
    INSERT INTO meta VALUES ('installation_id', '0123456789ab');
    INSERT INTO meta VALUES ('removals_with_traces', '0123456789ABCDEF');
    INSERT INTO groups VALUES ('terminal:main', 'main', 'main', 1, 'session-2', 8, NULL, NULL, NULL, NULL, 'public',
                               NULL, NULL, NULL, NULL, 0, NULL, NULL, '[]', NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:1', 'Family ''n'' friends 🦔', 'family', 0, 'session-1', 6, NULL, NULL, NULL, NULL,
                               'example.com,*.example.net', 1073741824, 1.5, 99, '@hedgehog', 1, '["bob@x", "Ada"]',
                               '["bob@x"]', '[["~/recipes", true], ["/srv/music", false]]', 'claude-next',
                               'Europe/Berlin', 2.5);
    INSERT INTO groups VALUES ('wa:2', 'New', 'new', 0, NULL, 0, 'session-0', 4, 'I have begun anew', '["voice"]',
                               'none', NULL, NULL, NULL, NULL, 1, '[]', NULL, '[]', NULL, NULL, 0.0);
    INSERT INTO groups VALUES ('wa:3', 'Lost', 'lost', 0, 'session-of-nothing', 5, NULL, NULL, NULL, NULL, 'bridge',
                               NULL, NULL, NULL, NULL, 0, NULL, NULL, '[]', NULL, NULL, NULL);
    INSERT INTO chats VALUES ('wa:1', 'Family', '2024-05-01T12:00:00+00:00');
    INSERT INTO outbox (id, chat_jid, text, kind, state, error, created_at, sent, file, unseen) VALUES
        (1, 'terminal:main', 'the answer', 'reply', 'sent', NULL, '2024-05-01T12:00:03+00:00', 0, NULL, 0),
        (2, 'terminal:main', 'I could not answer', 'notice', 'queued', NULL, '2024-05-01T12:00:04+00:00', 0, NULL, 0),
        (3, 'wa:9', 'nobody there', 'message', 'failed', 'no channel', '2024-05-01T12:00:05+00:00', 0, NULL, 0),
        (4, 'wa:1', 'another answer', 'reply', 'queued', NULL, '2024-05-01T12:00:06+00:00', 8, NULL, 0),
        (5, 'terminal:main', 'by myself', 'message', 'queued', NULL, '2024-05-01T12:00:07+00:00', 0,
         'main/0123456789ab/x.pdf', 1);
    INSERT INTO messages (id, chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, reply_to,
                          thread, state, error, attempts, acted, answered_by, asks, attachments) VALUES
        (1, 'terminal:main', 'a', 'ada@x', 'Ada', 'answered', '2024-05-01T12:00:00+00:00', 0, NULL, NULL, 'done', NULL,
         1, 1, 1, 1, '[]'),
        (2, 'terminal:main', 'b', 'ada@x', 'Ada', 'given up', '2024-05-01T12:00:01.5+00:00', 0, 'a', NULL, 'failed',
         'the agent ended', 3, 0, 2, 1, '[]'),
        (3, 'terminal:main', 'c', 'ada@x', 'Ada', 'under way', '2024-05-01T12:00:02+00:00', 0, NULL, 't', 'claimed',
         NULL, 0, 0, NULL, 1, '[]'),
        (4, 'terminal:main', 'd', 'ada@x', 'Ada', 'waiting', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending',
         'it did not start', 2, 0, NULL, 1, '[]'),
        (5, 'wa:1', 'a', 'bob@x', 'Bob', 'waiting é 🦔', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL,
         0, 0, NULL, 1, '[{"name": "é.png", "media_type": "image/png", "size": 9, "file": "0123456789ab-e.png"}]'),
        (7, 'wa:1', 'b', 'me', 'Me', '', '2024-04-30T12:00:02+00:00', 1, 'a', NULL, 'pending', NULL, 0, 0, NULL, 1,
         '[]'),
        (8, 'wa:3', 'a', 'cay@x', 'Cay', 'a tool ran', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'claimed', NULL,
         0, 1, NULL, 1, '[]'),
        (9, 'wa:2', 'a', 'dan@x', 'Dan', 'said to others', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL,
         0, 0, NULL, 0, '[]');
    INSERT INTO transcripts (id, folder, session_id, subpath, uuid, entry, dropped, at) VALUES
        (1, 'main', 'session-1', '', 'u1', '{"uuid": "u1", "of": "an earlier session"}', 0, NULL),
        (2, 'main', 'session-2', '', 'u1', '{"uuid": "u1", "text": "question"}', 0, '2024-05-01T12:00:01+00:00'),
        (3, 'family', 'session-1', '', 'f1', '{"uuid": "f1", "text": "é 🦔"}', 0, '2024-05-01T12:00:01.000Z'),
        (4, 'main', 'session-2', '', NULL, '{"type": "summary"}', 0, '2024-05-01T12:00:02+00:00'),
        (5, 'main', 'session-2', 'subagents/agent-1', 's1', '{"uuid": "s1"}', 0, '2024-05-01T12:00:02+00:00'),
        (6, 'family', 'session-1', '', 'f2', '{"uuid": "f2"}', 0, '2024-05-01T12:00:02+00:00'),
        (7, 'main', 'session-2', '', 'u3', '{"uuid": "u3", "text": "never answered, and dropped"}', 1,
         '2024-05-01T12:00:02+00:00'),
        (8, 'main', 'session-2', '', 'u2', '{"uuid": "u2", "text": "answer"}', 0, '2024-05-01T12:00:03+00:00'),
        (9, 'family', 'session-1', '', 'f3', '{"uuid": "f3", "text": "not answered yet"}', 0,
         '2024-05-01T12:00:03+00:00'),
        (10, 'main', 'session-2+task-1', '', 't1', '{"uuid": "t1"}', 0, '2024-05-01T12:00:03+00:00');
    INSERT INTO plugin_reports VALUES ('voice', 'mcp', 'Connection closed', '2024-05-01T12:00:08+00:00');
    INSERT INTO destinations VALUES ('family', '2024-05-01', 'example.com', 443, 2, 0, 1000, 20000, '',
                                     '2024-05-01T12:00:09+00:00');
    INSERT INTO destinations VALUES ('family', '2024-05-01', 'evil.example', 25, 0, 7, 0, 0, 'not named',
                                     '2024-05-01T12:00:10+00:00');
    INSERT INTO plugin_reports VALUES ('hello', 'load', '', '2024-05-01T12:00:08+00:00');
    INSERT INTO tasks VALUES (1, 'main', 'Water the plants 🦔', 'cron', '0 9 * * *', '2024-05-01T12:00:00+00:00',
                              'group', 'once', 'active', '2024-05-02T07:00:00+00:00', 1, '2024-05-01T12:00:00+00:00');
    INSERT INTO tasks VALUES (2, 'family', 'Say good night', 'once', '2024-05-01T20:00:00+00:00',
                              '2024-05-01T12:00:00+00:00', 'isolated', 'skip', 'ended', NULL, 0,
                              '2024-05-01T12:00:00+00:00');
    INSERT INTO task_runs VALUES (1, 1, '2024-05-01T07:00:00+00:00', '2024-05-01T07:00:01+00:00',
                                  '2024-05-01T07:00:09+00:00', 'failed', 2, 1, 'the agent ended');
    INSERT INTO task_runs VALUES (2, 2, '2024-05-01T20:00:00+00:00', NULL, NULL, 'claimed', 0, 0, '');
    INSERT INTO usage VALUES ('main', 0, '2024-05-01', 'claude-next', 3, 100, 20, 5000, 600, 12345, 0);
    INSERT INTO usage VALUES ('main', 1, '2024-05-01', 'some-model', 1, 10, 2, 0, 0, 0, 1);
    """

#: Rows as each version left them, in every table: frozen with the version, never edited, like its migration.
#: The answered turns of both sessions, the messages up to 7 and the outbox mean the same in every picture.
PICTURES = (
    "",
    """
    INSERT INTO meta VALUES ('installation_id', '0123456789ab');
    INSERT INTO groups VALUES ('terminal:main', 'main', 'main', 1, 'session-2');
    INSERT INTO groups VALUES ('wa:1', 'Family ''n'' friends 🦔', 'family', 0, 'session-1');
    INSERT INTO groups VALUES ('wa:2', 'New', 'new', 0, NULL);
    INSERT INTO groups VALUES ('wa:3', 'Lost', 'lost', 0, 'session-of-nothing');
    INSERT INTO chats VALUES ('wa:1', 'Family', '2024-05-01T12:00:00+00:00');
    INSERT INTO messages (id, chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, reply_to,
                          thread, state, error) VALUES
        (1, 'terminal:main', 'a', 'ada@x', 'Ada', 'answered', '2024-05-01T12:00:00+00:00', 0, NULL, NULL, 'done', NULL),
        (2, 'terminal:main', 'b', 'ada@x', 'Ada', 'given up', '2024-05-01T12:00:01.5+00:00', 0, 'a', NULL, 'failed',
         'the agent ended'),
        (3, 'terminal:main', 'c', 'ada@x', 'Ada', 'under way', '2024-05-01T12:00:02+00:00', 0, NULL, 't', 'claimed',
         NULL),
        (4, 'terminal:main', 'd', 'ada@x', 'Ada', 'waiting', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending',
         NULL),
        (5, 'wa:1', 'a', 'bob@x', 'Bob', 'waiting é 🦔', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL),
        (7, 'wa:1', 'b', 'me', 'Me', '', '2024-04-30T12:00:02+00:00', 1, 'a', NULL, 'pending', NULL);
    INSERT INTO outbox (id, chat_jid, text, kind, state, error, created_at) VALUES
        (1, 'terminal:main', 'the answer', 'reply', 'sent', NULL, '2024-05-01T12:00:03+00:00'),
        (2, 'terminal:main', 'I could not answer', 'notice', 'queued', NULL, '2024-05-01T12:00:04+00:00'),
        (3, 'wa:9', 'nobody there', 'message', 'failed', 'no channel', '2024-05-01T12:00:05+00:00'),
        (4, 'wa:1', 'another answer', 'reply', 'queued', NULL, '2024-05-01T12:00:06+00:00'),
        (5, 'terminal:main', 'by myself', 'message', 'queued', NULL, '2024-05-01T12:00:07+00:00');
    INSERT INTO transcripts (id, folder, session_id, subpath, uuid, entry) VALUES
        (1, 'main', 'session-1', '', 'u1', '{"uuid": "u1", "of": "an earlier session"}'),
        (2, 'main', 'session-2', '', 'u1', '{"uuid": "u1", "text": "question"}'),
        (3, 'family', 'session-1', '', 'f1', '{"uuid": "f1", "text": "é 🦔"}'),
        (4, 'main', 'session-2', '', NULL, '{"type": "summary"}'),
        (5, 'main', 'session-2', 'subagents/agent-1', 's1', '{"uuid": "s1"}'),
        (6, 'family', 'session-1', '', 'f2', '{"uuid": "f2"}'),
        (7, 'main', 'session-2', '', 'u2', '{"uuid": "u2", "text": "answer"}');
    """,
    """
    INSERT INTO meta VALUES ('installation_id', '0123456789ab');
    INSERT INTO groups VALUES ('terminal:main', 'main', 'main', 1, 'session-2', 8, NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:1', 'Family ''n'' friends 🦔', 'family', 0, 'session-1', 6, NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:2', 'New', 'new', 0, NULL, 0, 'session-0', 4, 'I have begun anew');
    INSERT INTO groups VALUES ('wa:3', 'Lost', 'lost', 0, 'session-of-nothing', 5, NULL, NULL, NULL);
    INSERT INTO chats VALUES ('wa:1', 'Family', '2024-05-01T12:00:00+00:00');
    INSERT INTO outbox (id, chat_jid, text, kind, state, error, created_at) VALUES
        (1, 'terminal:main', 'the answer', 'reply', 'sent', NULL, '2024-05-01T12:00:03+00:00'),
        (2, 'terminal:main', 'I could not answer', 'notice', 'queued', NULL, '2024-05-01T12:00:04+00:00'),
        (3, 'wa:9', 'nobody there', 'message', 'failed', 'no channel', '2024-05-01T12:00:05+00:00'),
        (4, 'wa:1', 'another answer', 'reply', 'queued', NULL, '2024-05-01T12:00:06+00:00'),
        (5, 'terminal:main', 'by myself', 'message', 'queued', NULL, '2024-05-01T12:00:07+00:00');
    INSERT INTO messages (id, chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, reply_to,
                          thread, state, error, attempts, acted, answered_by) VALUES
        (1, 'terminal:main', 'a', 'ada@x', 'Ada', 'answered', '2024-05-01T12:00:00+00:00', 0, NULL, NULL, 'done', NULL,
         1, 1, 1),
        (2, 'terminal:main', 'b', 'ada@x', 'Ada', 'given up', '2024-05-01T12:00:01.5+00:00', 0, 'a', NULL, 'failed',
         'the agent ended', 3, 0, 2),
        (3, 'terminal:main', 'c', 'ada@x', 'Ada', 'under way', '2024-05-01T12:00:02+00:00', 0, NULL, 't', 'claimed',
         NULL, 0, 0, NULL),
        (4, 'terminal:main', 'd', 'ada@x', 'Ada', 'waiting', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending',
         'it did not start', 2, 0, NULL),
        (5, 'wa:1', 'a', 'bob@x', 'Bob', 'waiting é 🦔', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL,
         0, 0, NULL),
        (7, 'wa:1', 'b', 'me', 'Me', '', '2024-04-30T12:00:02+00:00', 1, 'a', NULL, 'pending', NULL, 0, 0, NULL),
        (8, 'wa:3', 'a', 'cay@x', 'Cay', 'a tool ran', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'claimed', NULL,
         0, 1, NULL);
    INSERT INTO transcripts (id, folder, session_id, subpath, uuid, entry, dropped) VALUES
        (1, 'main', 'session-1', '', 'u1', '{"uuid": "u1", "of": "an earlier session"}', 0),
        (2, 'main', 'session-2', '', 'u1', '{"uuid": "u1", "text": "question"}', 0),
        (3, 'family', 'session-1', '', 'f1', '{"uuid": "f1", "text": "é 🦔"}', 0),
        (4, 'main', 'session-2', '', NULL, '{"type": "summary"}', 0),
        (5, 'main', 'session-2', 'subagents/agent-1', 's1', '{"uuid": "s1"}', 0),
        (6, 'family', 'session-1', '', 'f2', '{"uuid": "f2"}', 0),
        (7, 'main', 'session-2', '', 'u3', '{"uuid": "u3", "text": "never answered, and dropped"}', 1),
        (8, 'main', 'session-2', '', 'u2', '{"uuid": "u2", "text": "answer"}', 0),
        (9, 'family', 'session-1', '', 'f3', '{"uuid": "f3", "text": "not answered yet"}', 0);
    """,
    """
    INSERT INTO meta VALUES ('installation_id', '0123456789ab');
    INSERT INTO groups VALUES ('terminal:main', 'main', 'main', 1, 'session-2', 8, NULL, NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:1', 'Family ''n'' friends 🦔', 'family', 0, 'session-1', 6, NULL, NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:2', 'New', 'new', 0, NULL, 0, 'session-0', 4, 'I have begun anew', '["voice"]');
    INSERT INTO groups VALUES ('wa:3', 'Lost', 'lost', 0, 'session-of-nothing', 5, NULL, NULL, NULL, NULL);
    INSERT INTO chats VALUES ('wa:1', 'Family', '2024-05-01T12:00:00+00:00');
    INSERT INTO outbox (id, chat_jid, text, kind, state, error, created_at, sent) VALUES
        (1, 'terminal:main', 'the answer', 'reply', 'sent', NULL, '2024-05-01T12:00:03+00:00', 0),
        (2, 'terminal:main', 'I could not answer', 'notice', 'queued', NULL, '2024-05-01T12:00:04+00:00', 0),
        (3, 'wa:9', 'nobody there', 'message', 'failed', 'no channel', '2024-05-01T12:00:05+00:00', 0),
        (4, 'wa:1', 'another answer', 'reply', 'queued', NULL, '2024-05-01T12:00:06+00:00', 8),
        (5, 'terminal:main', 'by myself', 'message', 'queued', NULL, '2024-05-01T12:00:07+00:00', 0);
    INSERT INTO messages (id, chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, reply_to,
                          thread, state, error, attempts, acted, answered_by) VALUES
        (1, 'terminal:main', 'a', 'ada@x', 'Ada', 'answered', '2024-05-01T12:00:00+00:00', 0, NULL, NULL, 'done', NULL,
         1, 1, 1),
        (2, 'terminal:main', 'b', 'ada@x', 'Ada', 'given up', '2024-05-01T12:00:01.5+00:00', 0, 'a', NULL, 'failed',
         'the agent ended', 3, 0, 2),
        (3, 'terminal:main', 'c', 'ada@x', 'Ada', 'under way', '2024-05-01T12:00:02+00:00', 0, NULL, 't', 'claimed',
         NULL, 0, 0, NULL),
        (4, 'terminal:main', 'd', 'ada@x', 'Ada', 'waiting', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending',
         'it did not start', 2, 0, NULL),
        (5, 'wa:1', 'a', 'bob@x', 'Bob', 'waiting é 🦔', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL,
         0, 0, NULL),
        (7, 'wa:1', 'b', 'me', 'Me', '', '2024-04-30T12:00:02+00:00', 1, 'a', NULL, 'pending', NULL, 0, 0, NULL),
        (8, 'wa:3', 'a', 'cay@x', 'Cay', 'a tool ran', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'claimed', NULL,
         0, 1, NULL);
    INSERT INTO transcripts (id, folder, session_id, subpath, uuid, entry, dropped) VALUES
        (1, 'main', 'session-1', '', 'u1', '{"uuid": "u1", "of": "an earlier session"}', 0),
        (2, 'main', 'session-2', '', 'u1', '{"uuid": "u1", "text": "question"}', 0),
        (3, 'family', 'session-1', '', 'f1', '{"uuid": "f1", "text": "é 🦔"}', 0),
        (4, 'main', 'session-2', '', NULL, '{"type": "summary"}', 0),
        (5, 'main', 'session-2', 'subagents/agent-1', 's1', '{"uuid": "s1"}', 0),
        (6, 'family', 'session-1', '', 'f2', '{"uuid": "f2"}', 0),
        (7, 'main', 'session-2', '', 'u3', '{"uuid": "u3", "text": "never answered, and dropped"}', 1),
        (8, 'main', 'session-2', '', 'u2', '{"uuid": "u2", "text": "answer"}', 0),
        (9, 'family', 'session-1', '', 'f3', '{"uuid": "f3", "text": "not answered yet"}', 0);
    INSERT INTO plugin_reports VALUES ('voice', 'mcp', 'Connection closed', '2024-05-01T12:00:08+00:00');
    INSERT INTO plugin_reports VALUES ('hello', 'load', '', '2024-05-01T12:00:08+00:00');
    """,
    """
    INSERT INTO meta VALUES ('installation_id', '0123456789ab');
    INSERT INTO groups VALUES ('terminal:main', 'main', 'main', 1, 'session-2', 8, NULL, NULL, NULL, NULL, 'public',
                               NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:1', 'Family ''n'' friends 🦔', 'family', 0, 'session-1', 6, NULL, NULL, NULL, NULL,
                               'example.com,*.example.net', 1073741824, 1.5, 99);
    INSERT INTO groups VALUES ('wa:2', 'New', 'new', 0, NULL, 0, 'session-0', 4, 'I have begun anew', '["voice"]',
                               'none', NULL, NULL, NULL);
    INSERT INTO groups VALUES ('wa:3', 'Lost', 'lost', 0, 'session-of-nothing', 5, NULL, NULL, NULL, NULL, 'bridge',
                               NULL, NULL, NULL);
    INSERT INTO chats VALUES ('wa:1', 'Family', '2024-05-01T12:00:00+00:00');
    INSERT INTO outbox (id, chat_jid, text, kind, state, error, created_at, sent) VALUES
        (1, 'terminal:main', 'the answer', 'reply', 'sent', NULL, '2024-05-01T12:00:03+00:00', 0),
        (2, 'terminal:main', 'I could not answer', 'notice', 'queued', NULL, '2024-05-01T12:00:04+00:00', 0),
        (3, 'wa:9', 'nobody there', 'message', 'failed', 'no channel', '2024-05-01T12:00:05+00:00', 0),
        (4, 'wa:1', 'another answer', 'reply', 'queued', NULL, '2024-05-01T12:00:06+00:00', 8),
        (5, 'terminal:main', 'by myself', 'message', 'queued', NULL, '2024-05-01T12:00:07+00:00', 0);
    INSERT INTO messages (id, chat_jid, message_id, sender, sender_name, content, timestamp, is_from_me, reply_to,
                          thread, state, error, attempts, acted, answered_by) VALUES
        (1, 'terminal:main', 'a', 'ada@x', 'Ada', 'answered', '2024-05-01T12:00:00+00:00', 0, NULL, NULL, 'done', NULL,
         1, 1, 1),
        (2, 'terminal:main', 'b', 'ada@x', 'Ada', 'given up', '2024-05-01T12:00:01.5+00:00', 0, 'a', NULL, 'failed',
         'the agent ended', 3, 0, 2),
        (3, 'terminal:main', 'c', 'ada@x', 'Ada', 'under way', '2024-05-01T12:00:02+00:00', 0, NULL, 't', 'claimed',
         NULL, 0, 0, NULL),
        (4, 'terminal:main', 'd', 'ada@x', 'Ada', 'waiting', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending',
         'it did not start', 2, 0, NULL),
        (5, 'wa:1', 'a', 'bob@x', 'Bob', 'waiting é 🦔', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'pending', NULL,
         0, 0, NULL),
        (7, 'wa:1', 'b', 'me', 'Me', '', '2024-04-30T12:00:02+00:00', 1, 'a', NULL, 'pending', NULL, 0, 0, NULL),
        (8, 'wa:3', 'a', 'cay@x', 'Cay', 'a tool ran', '2024-05-01T12:00:02+00:00', 0, NULL, NULL, 'claimed', NULL,
         0, 1, NULL);
    INSERT INTO transcripts (id, folder, session_id, subpath, uuid, entry, dropped) VALUES
        (1, 'main', 'session-1', '', 'u1', '{"uuid": "u1", "of": "an earlier session"}', 0),
        (2, 'main', 'session-2', '', 'u1', '{"uuid": "u1", "text": "question"}', 0),
        (3, 'family', 'session-1', '', 'f1', '{"uuid": "f1", "text": "é 🦔"}', 0),
        (4, 'main', 'session-2', '', NULL, '{"type": "summary"}', 0),
        (5, 'main', 'session-2', 'subagents/agent-1', 's1', '{"uuid": "s1"}', 0),
        (6, 'family', 'session-1', '', 'f2', '{"uuid": "f2"}', 0),
        (7, 'main', 'session-2', '', 'u3', '{"uuid": "u3", "text": "never answered, and dropped"}', 1),
        (8, 'main', 'session-2', '', 'u2', '{"uuid": "u2", "text": "answer"}', 0),
        (9, 'family', 'session-1', '', 'f3', '{"uuid": "f3", "text": "not answered yet"}', 0);
    INSERT INTO plugin_reports VALUES ('voice', 'mcp', 'Connection closed', '2024-05-01T12:00:08+00:00');
    INSERT INTO destinations VALUES ('family', '2024-05-01', 'example.com', 443, 2, 0, 1000, 20000, '',
                                     '2024-05-01T12:00:09+00:00');
    INSERT INTO destinations VALUES ('family', '2024-05-01', 'evil.example', 25, 0, 7, 0, 0, 'not named',
                                     '2024-05-01T12:00:10+00:00');
    INSERT INTO plugin_reports VALUES ('hello', 'load', '', '2024-05-01T12:00:08+00:00');
    """,
    _FIFTH,
    _FIFTH + "UPDATE messages SET quote = 'what was said é' WHERE reply_to IS NOT NULL;"
    "UPDATE messages SET edits = 'c' WHERE id = 4;",
)
#: What a start of the service gives up in each picture: a tool had run for it.
FAILED_AT_START = ([], [], [8], [8], [8], [8], [8])

MAIN_TRANSCRIPT = [{"uuid": "u1", "text": "question"}, {"type": "summary"}, {"uuid": "u2", "text": "answer"}]
FAMILY_TRANSCRIPT = [{"uuid": "f1", "text": "é 🦔"}, {"uuid": "f2"}]

every_version = pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
every_version_with_rows = pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
every_earlier_version = pytest.mark.parametrize("version", range(len(MIGRATIONS)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pynchy.db"


def make(path: Path, version: int) -> None:
    """A database as that version left it."""
    with raw(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for migration in MIGRATIONS[:version]:
            db.executescript(migration)
        db.executescript(PICTURES[version])
        db.execute(f"PRAGMA user_version = {version}")


def open_store(path: Path) -> None:
    async def open_and_close() -> None:
        async with Store.open(path):
            pass

    asyncio.run(open_and_close())


def version_of(path: Path) -> int:
    return column(path, "PRAGMA user_version")[0]


def tables_of(db: sqlite3.Connection) -> list[str]:
    """Every table but those in which an index of words keeps what is its own."""
    return [
        row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB '*_text_*'")
    ]


def found(path: Path, index: str, words: str) -> list[int]:
    """The rows that an index of words has for these."""
    return column(path, f"SELECT rowid FROM {index} WHERE {index} MATCH ? ORDER BY rowid", words)


def contents(path: Path) -> dict[tuple[str, int, str], Any]:
    """Every value of a database by its table, row and column."""
    values: dict[tuple[str, int, str], Any] = {}
    with raw(path) as db:
        db.row_factory = sqlite3.Row
        for table in tables_of(db):
            for row in db.execute(f'SELECT rowid AS "the row", * FROM "{table}"'):
                values |= {(table, row["the row"], name): row[name] for name in row.keys()[1:]}
    return values


def schema_of(path: Path) -> tuple[Any, ...]:
    """Every table, index and trigger as SQLite has it, and every column."""
    things = rows(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    columns = {name: rows(path, f'PRAGMA table_info("{name}")') for kind, name, *_ in things if kind == "table"}
    return things, columns


def test_released_migrations_are_as_they_were_released() -> None:
    digests = tuple(hashlib.sha256(migration.encode()).hexdigest() for migration in MIGRATIONS)
    assert digests[: len(DIGESTS)] == DIGESTS, (
        "an existing migration was edited: databases that have had it will never see the change; "
        "append a new one to MIGRATIONS instead"
    )
    assert len(DIGESTS) == len(MIGRATIONS) == len(PICTURES) - 1 == len(FAILED_AT_START) - 1, (
        f"add the digest of the new migration, {digests[-1]}, and a picture of its version's rows"
    )


@every_version_with_rows
def test_the_picture_of_a_version_has_rows_in_each_of_its_tables(path: Path, version: int) -> None:
    make(path, version)
    with raw(path) as db:
        tables = tables_of(db)
    assert {table for table, _, _ in contents(path)} == set(tables)


# --- from every version to the newest -----------------------------------------------------------------------


@every_version
def test_a_database_of_every_version_becomes_the_newest_and_keeps_every_value(path: Path, version: int) -> None:
    make(path, version)
    before = contents(path)
    open_store(path)
    assert version_of(path) == len(MIGRATIONS)
    assert before.items() <= contents(path).items()
    assert damage(path) == []


@every_version
def test_the_schema_is_the_same_whichever_version_it_came_from(path: Path, version: int) -> None:
    make(path, version)
    open_store(path)
    fresh = path.with_name("fresh.db")
    open_store(fresh)
    assert schema_of(path) == schema_of(fresh)


@every_version_with_rows
def test_what_was_said_in_every_version_is_found_by_its_words(path: Path, version: int) -> None:
    make(path, version)
    open_store(path)
    assert found(path, "messages_text", "waiting") == [4, 5]
    assert found(path, "messages_text", "ADA") == [1, 2, 3, 4], "also by who said it"
    assert found(path, "messages_text", "e") == [5], "whatever its accent"
    assert found(path, "outbox_text", "answer") == [1, 2, 4]
    with raw(path) as db:
        for index in ("messages_text", "outbox_text"):
            db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
        db.execute("DELETE FROM messages WHERE id = 5")
        db.execute("DELETE FROM outbox WHERE id = 4")
        for index in ("messages_text", "outbox_text"):
            db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")
    assert found(path, "messages_text", "waiting") == [4]
    assert found(path, "outbox_text", "answer") == [1, 2]


@every_version_with_rows
def test_a_message_of_before_asks_for_its_answer_and_brought_nothing(path: Path, version: int) -> None:
    make(path, version)
    open_store(path)
    assert set(rows(path, "SELECT asks, attachments FROM messages WHERE id IN (1, 2, 3, 4, 7)")) == {(1, "[]")}
    assert set(column(path, "SELECT file FROM outbox WHERE id < 5")) == {None}
    assert set(column(path, "SELECT unseen FROM outbox WHERE id < 5")) == {0}


def test_a_conversation_of_before_is_as_old_as_its_entries_say(path: Path) -> None:
    make(path, 4)
    with raw(path) as db:
        for row_id, entry in ((20, '{"timestamp": "2024-05-01T12:00:01.000Z"}'), (21, "no JSON"), (22, "[]")):
            db.execute("INSERT INTO transcripts VALUES (?, 'main', 's', '', NULL, ?, 0)", (row_id, entry))
    open_store(path)
    at = rows(path, "SELECT id, at FROM transcripts WHERE id >= 20 ORDER BY id")
    assert at == [(20, "2024-05-01T12:00:01.000Z"), (21, None), (22, None)]
    assert set(column(path, "SELECT at FROM transcripts WHERE id < 20")) == {None}


@every_version_with_rows
async def test_messages_of_every_version_are_open_or_ended_as_they_were(path: Path, version: int) -> None:
    make(path, version)
    async with Store.open(path) as store:
        assert store.installation_id == "0123456789ab"
        assert await store.chats_with_pending() == ["terminal:main", "wa:1"]
        assert await store.outcome(1) == Outcome(None)
        assert await store.outcome(2) == Outcome("the agent ended")
        assert [await store.outcome(row_id) for row_id in (3, 4, 5, 6, 7)] == [None] * 5
        assert [one.id for one in await store.claim("terminal:main", 10, 10_000)] == [4], "3 is claimed already"

        assert await store.release(None, "stopped", "I was stopped") == FAILED_AT_START[version]
        assert [one.content for one in await store.claim("terminal:main", 10, 10_000)] == ["under way", "waiting"]
        assert [one.content for one in await store.claim("wa:1", 10, 10_000)] == ["waiting é 🦔", ""]
        await store.complete("terminal:main", [3, 4], "at last", None)
        assert await store.outcome(3) == Outcome(None)


@every_version_with_rows
async def test_what_every_version_had_to_send_is_sent_in_order(path: Path, version: int) -> None:
    make(path, version)
    sent: list[tuple[str, str]] = []
    async with Store.open(path) as store:
        assert await store.chats_with_queued() == ["terminal:main", "wa:1"]
        while chats := await store.chats_with_queued():
            outgoing = await store.next_queued(chats[0])
            assert outgoing
            sent.append((outgoing.text, outgoing.kind))
            await store.mark_sent(outgoing.id)
    assert sent == [("I could not answer", "notice"), ("another answer", "reply"), ("by myself", "message")]


@every_version_with_rows
async def test_conversations_of_every_version_go_on_where_they_were(path: Path, version: int) -> None:
    make(path, version)
    async with Store.open(path) as store:
        groups = await store.groups()
        # Which no version before the fifth could say otherwise: every message is answered.
        assert groups["terminal:main"] == Group("terminal:main", "main", "main", is_main=True, needs_trigger=False)
        family = Group("wa:1", "Family 'n' friends 🦔", "family", needs_trigger=False)
        if version >= 4:
            limits = {"memory_bytes": 1024**3, "cpus": 1.5, "pids": 99}
            family = replace(family, network="example.com,*.example.net", **limits)
        if version >= 5:
            family = replace(
                family,
                needs_trigger=True,
                trigger="@hedgehog",
                senders=("bob@x", "Ada"),
                commanders=("bob@x",),
                mounts=(ExtraMount("~/recipes", readonly=True), ExtraMount("/srv/music", readonly=False)),
                model="claude-next",
                time_zone="Europe/Berlin",
                usd_a_day=2.5,
            )
        assert groups["wa:1"] == family
        assert [await store.resume(jid) for jid in groups] == ["session-2", "session-1", None, "session-of-nothing"]
        assert await store.transcripts.load("main", "session-2", "", 0) == (MAIN_TRANSCRIPT, None)
        assert await store.transcripts.load("family", "session-1", "", 0) == (FAMILY_TRANSCRIPT, None)
        assert await store.transcripts.subpaths("main", "session-2") == ["subagents/agent-1"]
        assert await store.transcripts.load("main", "session-2", "subagents/agent-1", 0) == ([{"uuid": "s1"}], None)

        more = [{"uuid": "u2", "text": "again"}, {"uuid": "u9"}]
        end = await store.transcripts.append("main", "session-2", "", more)
        await store.complete("terminal:main", [3, 4], "reply", "session-2", end)
        await store.transcripts.append("main", "session-2", "", [{"uuid": "behind"}])
        assert await store.resume("terminal:main") == "session-2"
        assert await store.transcripts.load("main", "session-2", "", 0) == ([*MAIN_TRANSCRIPT, {"uuid": "u9"}], None)


async def test_a_fresh_database_is_of_the_newest_version_with_an_identity_of_its_own(path: Path) -> None:
    async with Store.open(path) as store:
        identity = store.installation_id
    assert version_of(path) == len(MIGRATIONS)
    async with Store.open(path) as store:
        assert store.installation_id == identity
    async with Store.open(path.with_name("another.db")) as another:
        assert another.installation_id not in ("", identity)


# --- what cannot be opened is left alone --------------------------------------------------------------------


async def cannot_open(path: Path, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        async with Store.open(path):
            pytest.fail("it was opened")


@every_version
async def test_a_migration_that_fails_half_way_changes_nothing(
    path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(path, version)
    before = contents(path), schema_of(path)
    broken = "CREATE TABLE half (one TEXT); INSERT INTO half VALUES ('x'); ALTER TABLE nothing ADD COLUMN other TEXT"
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS[:version], broken))
    await cannot_open(path, "nothing")
    assert (contents(path), schema_of(path)) == before
    assert version_of(path) == version
    monkeypatch.undo()
    async with Store.open(path):
        assert version_of(path) == len(MIGRATIONS)


async def test_migrations_before_one_that_fails_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (one TEXT)", "no SQL at all"))
    await cannot_open(path, "syntax error")
    assert version_of(path) == len(MIGRATIONS) + 1
    assert column(path, "SELECT * FROM more") == []


async def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    make(path, len(MIGRATIONS))
    with raw(path) as db:
        db.execute("CREATE TABLE of_the_future (one TEXT)")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    await cannot_open(path, "upgrade pynchy")
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_an_error_that_names_it(path: Path) -> None:
    text = b"this is no database at all, whatever its name says\n" * 100
    path.write_bytes(text)
    await cannot_open(path, r"cannot use the database .*/pynchy\.db")
    assert path.read_bytes() == text


@pytest.mark.parametrize("where", ["missing/pynchy.db", "."])
async def test_a_place_where_no_file_can_be_is_an_error_that_names_it(tmp_path: Path, where: str) -> None:
    await cannot_open(tmp_path / where, "cannot open the database")


# --- kill -9 ------------------------------------------------------------------------------------------------

#: Migrates, and is killed before the statement of that number; prints each statement that it comes to.
DIES_WHILE_MIGRATING = """
import json, os, signal, sqlite3, sys
from pynchy.schema import migrate

path, limit = sys.argv[1], int(sys.argv[2])
statements = 0

def count(sql):
    global statements
    statements += 1
    print(json.dumps(sql.strip("; \\n")), flush=True)
    if statements == limit:
        os.kill(os.getpid(), signal.SIGKILL)

db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # so that changes reach the file before they are committed
db.set_trace_callback(count)
migrate(db)
"""


def migrate_and_die(path: Path, statement: int) -> tuple[int, list[str]]:
    """The exit code of a process that dies at a statement, and the statements it came to."""
    process = subprocess.run(
        [sys.executable, "-c", DIES_WHILE_MIGRATING, path, str(statement)], capture_output=True, text=True, check=False
    )
    return process.returncode, [json.loads(line) for line in process.stdout.splitlines()]


@every_earlier_version
def test_a_migration_that_is_killed_leaves_the_version_before_or_the_one_after(path: Path, version: int) -> None:
    trial = path.with_name("trial.db")
    make(trial, version)
    code, statements = migrate_and_die(trial, 0)
    assert code == 0
    begin, commit = (statements.index(one) + 1 for one in ("BEGIN IMMEDIATE", "COMMIT"))
    assert commit - begin > 3
    for dies_at in {begin, begin + 1, (begin + commit) // 2, commit - 1, commit, commit + 1}:
        one = path.with_name(f"killed-{dies_at}.db")
        make(one, version)
        before = contents(one), schema_of(one)
        assert migrate_and_die(one, dies_at)[0] == -signal.SIGKILL
        if dies_at <= commit:
            assert (contents(one), schema_of(one)) == before
        assert version_of(one) == version + (dies_at > commit)
        assert damage(one) == []
        open_store(one)
        assert version_of(one) == len(MIGRATIONS)
        assert before[0].items() <= contents(one).items()
