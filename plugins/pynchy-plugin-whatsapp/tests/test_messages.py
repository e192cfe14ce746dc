"""Events with neonize's own protobuf classes, as the worker reads them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from whatsapp_protos import e2e, events
from whatsapp_side import ADA, ADAS_LID, GROUP, ME, MY_LID, jid, message_event

from pynchy_plugin_whatsapp.contents import fetchable
from pynchy_plugin_whatsapp.link import LONGEST_LINE
from pynchy_plugin_whatsapp.messages import Reader
from pynchy_plugin_whatsapp.spool import Spool

_HIDDEN = {ADAS_LID: ADA}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path)
    yield spool
    spool.close()


@pytest.fixture
def reader(spool: Spool) -> Reader:
    me = events.Device(Platform="", BussinessName="", PushName="Me", Initialized=True)
    me.JID.CopyFrom(jid(ME, device=7))
    me.LID.CopyFrom(jid(MY_LID, "lid", 7))
    return Reader(me, lambda lid: jid(_HIDDEN[lid.User]) if lid.User in _HIDDEN else None, spool)


def _read(reader: Reader, message: e2e.Message, **fields: Any) -> dict[str, Any] | None:
    return reader.read(message_event(message, **fields).SerializeToString())


def _said(reader: Reader, message: e2e.Message, **fields: Any) -> dict[str, Any]:
    read = _read(reader, message, **fields)
    assert read is not None
    return read


def _text(text: str) -> e2e.Message:
    return e2e.Message(conversation=text)


def _wrapped(**inner: Any) -> e2e.FutureProofMessage:
    return e2e.FutureProofMessage(message=e2e.Message(**inner))


# --- who, and in which chat ---------------------------------------------------------------------------------


def test_a_private_message_is_in_the_chat_of_its_sender(reader: Reader) -> None:
    read = _said(reader, _text("Hello"), id="A1", timestamp=1_700_000_000_123)
    assert (read["chat"], read["id"], read["text"]) == (f"whatsapp:{ADA}@s.whatsapp.net", "A1", "Hello")
    assert (read["sender"], read["sender_name"], read["from_me"]) == (f"{ADA}@s.whatsapp.net", "Ada", False)
    assert read["at"] == 1_700_000_000.123


def test_a_group_message_is_in_the_group_and_its_senders_own(reader: Reader) -> None:
    read = _said(reader, _text("Hi"), chat=jid(GROUP, "g.us"), sender=jid(ADA, device=12), group=True)
    assert (read["chat"], read["sender"]) == (f"whatsapp:{GROUP}@g.us", f"{ADA}@s.whatsapp.net")


def test_a_hidden_id_is_taken_for_the_phone_number_that_comes_with_it(reader: Reader) -> None:
    private = _said(reader, _text("Hi"), chat=jid("777", "lid"), sender=jid("777", "lid"), sender_alt=jid(ADA))
    group = _said(
        reader, _text("Hi"), chat=jid(GROUP, "g.us"), sender=jid("777", "lid", 3), sender_alt=jid(ADA), group=True
    )
    mine = _said(
        reader, _text("Hi"), chat=jid("777", "lid"), sender=jid(MY_LID, "lid"), from_me=True, recipient_alt=jid(ADA)
    )
    assert private["chat"] == mine["chat"] == f"whatsapp:{ADA}@s.whatsapp.net"
    assert private["sender"] == group["sender"] == f"{ADA}@s.whatsapp.net"


def test_a_hidden_id_without_a_number_is_looked_up_and_kept_where_nobody_knows_it(reader: Reader) -> None:
    known = _said(reader, _text("Hi"), chat=jid(ADAS_LID, "lid"), sender=jid(ADAS_LID, "lid"))
    unknown = _said(reader, _text("Hi"), chat=jid("778", "lid"), sender=jid("778", "lid"))
    assert known["chat"] == f"whatsapp:{ADA}@s.whatsapp.net"
    assert unknown["chat"] == "whatsapp:778@lid"


@pytest.mark.parametrize(("user", "server"), [(ME, "s.whatsapp.net"), (MY_LID, "lid")])
def test_the_chat_with_oneself_has_ones_own_number(reader: Reader, user: str, server: str) -> None:
    read = _said(reader, _text("Note"), chat=jid(user, server), sender=jid(user, server), from_me=True)
    assert (read["chat"], read["sender"], read["from_me"]) == (
        f"whatsapp:{ME}@s.whatsapp.net",
        f"{ME}@s.whatsapp.net",
        True,
    )


def test_what_is_typed_on_the_phone_is_from_me_and_what_this_device_sent_is_ignored(
    reader: Reader, spool: Spool
) -> None:
    typed = _said(reader, _text("Typed"), sender=jid(ME), from_me=True)
    assert typed["from_me"]
    assert _read(reader, _text("Sent"), sender=jid(ME, device=7), from_me=True) is None
    assert _read(reader, _text("Sent"), sender=jid(MY_LID, "lid", 7), from_me=True) is None
    spool.remember(f"whatsapp:{ADA}@s.whatsapp.net", "S1", f"{ME}@s.whatsapp.net", ours=True)
    assert _read(reader, _text("Sent"), id="S1", sender=jid(ME), from_me=True) is None


@pytest.mark.parametrize(
    ("user", "server"),
    [("status", "broadcast"), ("1234", "broadcast"), ("1234", "newsletter"), ("867051314767696", "bot"), ("1", "msgr")],
)
def test_the_status_newsletters_lists_and_bots_are_no_chats(reader: Reader, user: str, server: str) -> None:
    assert _read(reader, _text("News"), chat=jid(user, server), sender=jid(ADA)) is None


@pytest.mark.parametrize("user", ["", "../..", "49 151", "a" * 500, "١٢٣", "1\n2"])
def test_an_odd_id_is_no_chat(reader: Reader, user: str) -> None:
    assert _read(reader, _text("Hi"), chat=jid(user), sender=jid(user)) is None


# --- what is said -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (e2e.Message(extendedTextMessage=e2e.ExtendedTextMessage(text="See https://example.org")), None),
        (e2e.Message(ephemeralMessage=_wrapped(conversation="gone soon")), "gone soon"),
        (e2e.Message(viewOnceMessageV2=_wrapped(conversation="once")), "once"),
        (e2e.Message(ephemeralMessage=_wrapped(viewOnceMessage=_wrapped(conversation="both"))), "both"),
        (
            e2e.Message(deviceSentMessage=e2e.DeviceSentMessage(message=e2e.Message(conversation="from the phone"))),
            "from the phone",
        ),
        (
            e2e.Message(contactMessage=e2e.ContactMessage(displayName="Bob", vcard="TEL;waid=49:+49 1\nEND:VCARD")),
            "[contact] Bob, +49 1",
        ),
        (
            e2e.Message(
                contactsArrayMessage=e2e.ContactsArrayMessage(
                    contacts=[e2e.ContactMessage(displayName="Bob"), e2e.ContactMessage(displayName="Eve")]
                )
            ),
            "[contact] Bob\n[contact] Eve",
        ),
        (
            e2e.Message(locationMessage=e2e.LocationMessage(degreesLatitude=52.5, degreesLongitude=13.4, name="Here")),
            "[location] Here, 52.500000, 13.400000",
        ),
        (
            e2e.Message(
                pollCreationMessageV3=e2e.PollCreationMessage(
                    name="Lunch?",
                    options=[
                        e2e.PollCreationMessage.Option(optionName="Yes"),
                        e2e.PollCreationMessage.Option(optionName="No"),
                    ],
                )
            ),
            "[poll] Lunch?: Yes / No",
        ),
        (e2e.Message(eventMessage=e2e.EventMessage(name="Party", description="At ours")), "[event] Party\nAt ours"),
        (
            e2e.Message(buttonsResponseMessage=e2e.ButtonsResponseMessage(selectedDisplayText="Agreed")),
            "Agreed",
        ),
    ],
    ids=lambda value: value.ListFields()[0][0].name if isinstance(value, e2e.Message) else "",
)
def test_a_text_is_found_wherever_it_is(reader: Reader, message: e2e.Message, text: str | None) -> None:
    assert _said(reader, message)["text"] == (text or "See https://example.org")


@pytest.mark.parametrize(
    ("message", "text", "name", "media_type"),
    [
        (e2e.Message(imageMessage=e2e.ImageMessage(mimetype="image/png", caption="Look")), "Look", "image.png", None),
        (e2e.Message(videoMessage=e2e.VideoMessage(mimetype="video/mp4")), "", "video.mp4", None),
        (e2e.Message(ptvMessage=e2e.VideoMessage(mimetype="video/mp4")), "", "video-note.mp4", None),
        (
            e2e.Message(audioMessage=e2e.AudioMessage(mimetype="audio/ogg; codecs=opus", PTT=True)),
            "",
            "voice-note.ogg",
            "audio/ogg",
        ),
        (e2e.Message(audioMessage=e2e.AudioMessage(mimetype="audio/mpeg")), "", "audio.mp3", "audio/mpeg"),
        (e2e.Message(stickerMessage=e2e.StickerMessage(mimetype="image/webp")), "", "sticker.webp", None),
        (
            e2e.Message(
                documentWithCaptionMessage=_wrapped(
                    documentMessage=e2e.DocumentMessage(
                        mimetype="application/pdf", fileName="../../etc/a\nb.pdf", caption="Read"
                    )
                )
            ),
            "Read",
            "_.._etc_a b.pdf",
            "application/pdf",
        ),
        (
            e2e.Message(documentMessage=e2e.DocumentMessage(mimetype="evil\r\nheader: x")),
            "",
            "document",
            "application/octet-stream",
        ),
    ],
    ids=lambda value: value.ListFields()[0][0].name if isinstance(value, e2e.Message) else "",
)
def test_a_file_has_a_name_and_a_type(
    reader: Reader, message: e2e.Message, text: str, name: str, media_type: str | None
) -> None:
    read = _said(reader, message)
    assert (read["text"], read["file"]["name"]) == (text, name)
    assert read["file"]["media_type"] == (media_type or read["file"]["media_type"])


def test_an_answer_says_what_it_answers(reader: Reader) -> None:
    context = e2e.ContextInfo(stanzaID="A1", participant=f"{ADA}@s.whatsapp.net")
    context.quotedMessage.conversation = "The question"
    read = _said(
        reader, e2e.Message(extendedTextMessage=e2e.ExtendedTextMessage(text="The answer", contextInfo=context))
    )
    assert (read["reply_to"], read["quote"]) == ("A1", "The question")


def test_an_answer_to_a_picture_quotes_its_name(reader: Reader) -> None:
    context = e2e.ContextInfo(stanzaID="A1")
    context.quotedMessage.imageMessage.mimetype = "image/jpeg"
    read = _said(reader, e2e.Message(imageMessage=e2e.ImageMessage(caption="So?", contextInfo=context)))
    assert (read["reply_to"], read["quote"], read["text"]) == ("A1", "[image.jpg]", "So?")


def _edit(target: str, text: str, at: int = 1_700_000_001_000) -> e2e.Message:
    protocol = e2e.ProtocolMessage(type=e2e.ProtocolMessage.MESSAGE_EDIT, timestampMS=at)
    protocol.key.ID = target
    protocol.editedMessage.conversation = text
    return e2e.Message(protocolMessage=protocol)


def test_an_edit_is_a_message_of_its_own_that_names_the_first_one(reader: Reader) -> None:
    _said(reader, _text("Helo"), id="A1")
    first = _said(reader, _edit("A1", "Hello"), id="E1")
    again = _said(reader, e2e.Message(editedMessage=e2e.FutureProofMessage(message=_edit("A1", "Hello"))), id="E2")
    assert (first["id"], first["edits"], first["text"]) == ("A1+1700000001000", "A1", "Hello")
    assert again == {**first, "at": again["at"]}


def test_nobody_puts_right_what_another_has_written(reader: Reader) -> None:
    group = {"chat": jid(GROUP, "g.us"), "group": True}
    _said(reader, _text("Pay 5"), id="A1", **group)
    forged = _said(reader, _edit("A1", "Pay 5000"), sender=jid("4915100000666"), **group)
    unknown = _said(reader, _edit("A9", "Pay 5000"), **group)
    assert forged["edits"] is None
    assert unknown["edits"] is None


@pytest.mark.parametrize(
    "message",
    [
        e2e.Message(),
        e2e.Message(reactionMessage=e2e.ReactionMessage(text="👍")),
        e2e.Message(pollUpdateMessage=e2e.PollUpdateMessage()),
        e2e.Message(protocolMessage=e2e.ProtocolMessage(type=e2e.ProtocolMessage.REVOKE)),
        e2e.Message(protocolMessage=e2e.ProtocolMessage(type=e2e.ProtocolMessage.MESSAGE_EDIT)),
        e2e.Message(senderKeyDistributionMessage=e2e.SenderKeyDistributionMessage(groupID="1")),
        e2e.Message(groupStatusMessage=_wrapped(conversation="status")),
        e2e.Message(ephemeralMessage=e2e.FutureProofMessage()),
    ],
    ids=lambda value: "+".join(field.name for field, _ in value.ListFields()) or "nothing",
)
def test_what_says_nothing_is_no_message(reader: Reader, message: e2e.Message) -> None:
    assert _read(reader, message) is None


def test_what_devices_tell_each_other_is_no_message(reader: Reader) -> None:
    assert _read(reader, _text("sync"), category="peer") is None


# --- what is hostile ----------------------------------------------------------------------------------------


def test_control_characters_leave_names_and_texts(reader: Reader) -> None:
    read = _said(reader, _text("a\x00b\x1b[2Jc\td\ne"), name="Ada\x1b]0;\nadmin\u2028")
    assert read["text"] == "ab[2Jc\td\ne"
    assert read["sender_name"] == "Ada ]0; admin"


def test_without_a_name_a_sender_is_called_by_the_number(reader: Reader) -> None:
    assert _said(reader, _text("Hi"), name="\n\x00 ")["sender_name"] == ADA


def test_a_wrapper_in_a_wrapper_without_end_is_no_message(reader: Reader) -> None:
    message = e2e.Message(conversation="deep")
    for _ in range(30):
        message = e2e.Message(ephemeralMessage=e2e.FutureProofMessage(message=message))
    assert _read(reader, message) is None


@pytest.mark.parametrize(
    "event",
    [
        b"\xff\xff\xff",
        b"\x0a\x03abc",
        message_event(_text("x")).SerializeToString()[:-3],
        message_event(_text("hello")).SerializeToString().replace(b"hello", b"h\xff\xfelo"),
    ],
    ids=["noise", "wrong", "cut", "not UTF-8"],
)
def test_what_cannot_be_decoded_is_an_error(reader: Reader, event: bytes) -> None:
    with pytest.raises((DecodeError, TypeError, ValueError)):
        reader.read(event)


@pytest.mark.parametrize("at", [0, -5, 2**62])
def test_an_impossible_time_is_an_error(reader: Reader, at: int) -> None:
    with pytest.raises(ValueError, match="impossible time"):
        _read(reader, _text("x"), timestamp=at)


def test_a_huge_text_is_cut(reader: Reader) -> None:
    assert len(_said(reader, _text("x" * 3_000_000))["text"]) == 1_000_000


def test_a_file_is_fetched_from_whatsapps_servers_whatever_its_sender_says() -> None:
    film = e2e.VideoMessage(URL="http://169.254.169.254/", directPath="/v/1", mediaKey=b"key", mimetype="video/mp4")
    wanted = fetchable(e2e.Message(ephemeralMessage=_wrapped(ptvMessage=film)))
    assert not wanted.videoMessage.HasField("URL")
    assert (wanted.videoMessage.directPath, wanted.videoMessage.mediaKey) == ("/v/1", b"key")
    for path in ("", "@evil.example/x", ".evil.example/x", "//evil.example/x", ":80@evil.example/"):
        with pytest.raises(ValueError, match="not on WhatsApp's servers"):
            fetchable(e2e.Message(imageMessage=e2e.ImageMessage(URL="https://evil.example/", directPath=path)))


def test_the_largest_message_that_there_can_be_fits_on_the_way_to_the_channel(reader: Reader) -> None:
    context = e2e.ContextInfo(stanzaID="A" * 10_000)
    context.quotedMessage.conversation = "𝔘" * 2_000_000
    text = e2e.ExtendedTextMessage(text='"𝔘' * 2_000_000, contextInfo=context)
    read = _said(reader, e2e.Message(extendedTextMessage=text), name="𝔘" * 1_000_000)
    assert len(json.dumps(read, ensure_ascii=False).encode()) < LONGEST_LINE / 2
