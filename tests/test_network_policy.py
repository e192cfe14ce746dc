"""What a network policy allows, and the addresses that none opens."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynchy.network_policy import NetworkPolicy, forbidden, normal_host

_FORBIDDEN = """
127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 169.254.0.1
100.64.0.1 100.100.100.200 168.63.129.16 192.0.0.192 198.18.0.1 192.0.2.1 198.51.100.7 203.0.113.9 224.0.0.1
239.255.255.250 240.0.0.1 255.255.255.255
::1 :: fe80::1 fc00::1 fd00:ec2::254 ff02::1 fec0::1 100::1 2001:db8::1 2001::1 3fff::1 5f00::1 64:ff9b:1::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::
2002:a00:1::1 2001:0:7f00:1:0:ffff:8000:fffe
""".split()  # noqa: SIM905 - one a line would be a page
_PUBLIC = """
1.1.1.1 8.8.8.8 93.184.216.34 172.15.0.1 172.32.0.1 100.63.255.255 100.128.0.1 168.63.129.17 223.255.255.255
2606:4700:4700::1111 2a00:1450:4001:80b::200e ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1
""".split()  # noqa: SIM905 - one a line would be a page


@pytest.mark.parametrize("address", _FORBIDDEN)
def test_no_policy_opens_what_is_not_public(address: str) -> None:
    assert forbidden(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", _PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    assert not forbidden(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_what_python_knows_to_be_private_is_never_open_in_any_dress(address: ipaddress.IPv4Address) -> None:
    dressed = [
        address,
        ipaddress.IPv6Address((0xFFFF << 32) + int(address)),
        ipaddress.IPv6Address((0x64FF9B << 96) + int(address)),
        ipaddress.IPv6Address((0x2002 << 112) + (int(address) << 80)),
    ]
    if address.is_private or address.is_multicast or not address.is_global:
        assert all(map(forbidden, dressed))
    assert len({forbidden(one) for one in dressed}) == 1


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_is_not_global_is_never_open(address: ipaddress.IPv6Address) -> None:
    if address.is_private or address.is_multicast or address.is_link_local or address.is_site_local:
        assert forbidden(address)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        (" example.com ", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("[::1]", "::1"),
        ("2606:4700:0::1111", "2606:4700::1111"),
        ("1.2.3.4", "1.2.3.4"),
        ("2130706433", "2130706433"),
        ("127.1", "127.1"),
    ],
)
def test_a_host_is_written_in_one_way(written: str, host: str) -> None:
    assert normal_host(written) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "a..b",
        "-a.com",
        "a-.com",
        "a b",
        "a/b",
        "a@b",
        "a\r\nb",
        "x" * 64 + ".com",
        "a." * 130,
        "\x00",
        "ü" * 300,
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        normal_host(host)


_LIST = NetworkPolicy.parse("example.com, *.example.net, api.example.org:8443, 93.184.216.34")


@pytest.mark.parametrize(
    ("policy", "host", "port", "allowed"),
    [
        ("none", "example.com", 443, False),
        ("bridge", "example.com", 443, False),
        ("public", "example.com", 22, True),
        (str(_LIST), "example.com", 443, True),
        (str(_LIST), "example.com", 80, True),
        (str(_LIST), "example.com", 22, False),
        (str(_LIST), "www.example.com", 443, False),
        (str(_LIST), "notexample.com", 443, False),
        (str(_LIST), "example.com.evil.org", 443, False),
        (str(_LIST), "deb.example.net", 80, True),
        (str(_LIST), "a.b.example.net", 443, True),
        (str(_LIST), "example.net", 443, False),
        (str(_LIST), "evilexample.net", 443, False),
        (str(_LIST), "api.example.org", 8443, True),
        (str(_LIST), "api.example.org", 443, False),
        (str(_LIST), "93.184.216.34", 443, True),
    ],
)
def test_a_policy_allows_what_it_names(policy: str, host: str, port: int, allowed: bool) -> None:
    refusal = NetworkPolicy.parse(policy).refusal(host, port)
    assert (refusal is None) == allowed


@pytest.mark.parametrize("text", ["none", "public", "bridge", "example.com", "*.a.b,c.d:8080,[2606:4700::1]:443"])
def test_a_policy_is_read_back_as_it_is_written(text: str) -> None:
    assert str(NetworkPolicy.parse(text)) == text
    assert NetworkPolicy.parse(f" {text.upper()} ") == NetworkPolicy.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a network policy is"),
        (",", "a network policy is"),
        ("pubilc", "its name has no dot"),
        ("localhost", "its name has no dot"),
        ("public,example.com", "'public' is no host"),
        ("*", "is no host"),
        ("*.", "is no host"),
        ("https://example.com", "is no host"),
        ("example.com:0", "is no host"),
        ("example.com:65536", "is no host"),
        ("example.com/path", "is no host name"),
        ("127.0.0.1", "is no public address"),
        ("10.0.0.0:80", "is no public address"),
        ("[fe80::1]:80", "is no public address"),
        (",".join(f"h{number}.example.com" for number in range(201)), "to 200 hosts"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        NetworkPolicy.parse(text)
