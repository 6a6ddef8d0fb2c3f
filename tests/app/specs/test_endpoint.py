"""Where a base URL may lead, whatever it is spelled like; and what a URL may be."""

from ipaddress import ip_address

import pytest

from app.specs.checkpoint import EndpointSource
from app.specs.endpoint import (
    base_url_of,
    literal_address,
    place_of,
    refusal,
    saved_refusal,
    url_problem,
)

SPELLINGS = [
    "http://127.0.0.1/v1",
    "http://127.0.0.1:8000/v1",
    "http://127.1/v1",
    "http://127.000.000.1/v1",
    "http://0177.0.0.1/v1",
    "http://0x7f.0.0.1/v1",
    "http://0x7f000001/v1",
    "http://2130706433/v1",
    "http://017700000001/v1",
    "http://localhost/v1",
    "http://LOCALHOST/v1",
    "http://localhost./v1",
    "http://a.localhost/v1",
    "http://[::1]/v1",
    "http://[0:0:0:0:0:0:0:1]/v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://[::ffff:7f00:1]/v1",
    "http://[64:ff9b::7f00:1]/v1",
    "http://[2002:7f00:1::]/v1",
    "http://0.0.0.0/v1",
    "http://0/v1",
    "http://[::]/v1",
    "http://10.0.0.1/v1",
    "http://172.16.5.4/v1",
    "http://192.168.1.1/v1",
    "http://100.64.0.1/v1",
    "http://[fd00::1]/v1",
    "http://224.0.0.1/v1",
]
METADATA = [
    "http://169.254.169.254/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://0xa9fea9fe/v1",
    "http://[fd00:ec2::254]/v1",
    "http://[fe80::1]/v1",
    "http://100.100.100.200/v1",
    "http://168.63.129.16/v1",
]


@pytest.mark.parametrize("url", SPELLINGS + METADATA)
def test_no_private_address_is_saved_in_any_spelling(url: str) -> None:
    assert saved_refusal(url, ()) is not None


@pytest.mark.parametrize("url", METADATA)
def test_what_answers_with_credentials_is_never_allowed(url: str) -> None:
    allowed = ("169.254.0.0/16", "0.0.0.0/0", "::/0", place_of(url).named, place_of(url).host)
    assert "no request may reach" in str(saved_refusal(url, allowed))


@pytest.mark.parametrize(
    ("entry", "may"),
    [
        ("10.1.2.3:8000", True),
        ("10.1.2.3", True),
        ("10.0.0.0/8", True),
        ("10.0.0.0/8:8000", True),
        ("10.0.0.0/8:8001", False),
        ("10.1.2.3:80", False),
        ("11.0.0.0/8", False),
        ("10.1.2.4", False),
        ("10.1.2.3x", False),
        ("::/0", False),
    ],
)
def test_the_allow_list_names_hosts_and_networks(entry: str, may: bool) -> None:
    found = saved_refusal("http://10.1.2.3:8000/v1", (entry,))
    assert (found is None) == may
    if found is not None:
        assert "STILLHOUSE_ENDPOINT_HOSTS='[\"10.1.2.3:8000\"]'" in found


def test_a_named_host_is_allowed_at_whatever_private_address_it_has() -> None:
    place = place_of("http://vllm.internal:8000/v1")
    assert refusal(place, ip_address("10.1.2.3"), ()) is not None
    assert refusal(place, ip_address("10.1.2.3"), ("VLLM.internal:8000",)) is None
    assert refusal(place, ip_address("10.1.2.3"), ("other.internal",)) is not None
    assert refusal(place, ip_address("169.254.169.254"), ("vllm.internal",)) is not None
    six = place_of("http://[fd12::1]:8000/v1")
    assert refusal(six, ip_address("fd12::1"), ("[fd12::1]:8000",)) is None
    assert refusal(six, ip_address("fd12::1"), ("[fd12::/16]:8000",)) is None
    assert refusal(six, ip_address("fd12::1"), ("fd12::/16",)) is None


def test_public_addresses_may_be_asked() -> None:
    assert saved_refusal("https://api.example.com/v1", ()) is None
    assert saved_refusal("https://93.184.215.14/v1", ()) is None
    assert saved_refusal("https://[2606:2800:21f::1]/v1", ()) is None
    assert literal_address("api.example.com") is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8000/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "gopher://host/",
        "http:///v1",
        "http://user:pw@host/v1",
        "http://user@host/v1",
        "http://host/v1?key=1",
        "http://host/v1#x",
        "http://host:99999/v1",
        "http://host:0/v1",
        "http://ho st/v1",
        "http://host/\nv1",
        "http://[::1/v1",
        "http://" + "a" * 600,
    ],
)
def test_what_is_no_base_url_is_told(url: str) -> None:
    assert url_problem(url) is not None
    with pytest.raises(ValueError, match="base_url"):
        EndpointSource(base_url=url, model="m")


def test_a_url_with_an_operation_is_taken_as_its_base() -> None:
    for tail in ("", "/", "/chat/completions", "/completions", "/models"):
        assert base_url_of(f" https://host/v1{tail} ") == "https://host/v1"
    one, two = (EndpointSource(base_url=f"https://host/v1{t}", model="m") for t in ("", "/"))
    assert one.fingerprint == two.fingerprint
    others = [
        EndpointSource(base_url="https://host:444/v1", model="m"),
        EndpointSource(base_url="https://host/v1", model="n"),
    ]
    assert len({one.fingerprint, *(o.fingerprint for o in others)}) == 3
