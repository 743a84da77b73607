"""What is no token here: tables of hostile and broken ones, and those of other issuers."""

import base64
import hashlib
import hmac
import json
import string
import time
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from django.test import Client

from k1node.access import grants, issuers, jwt_tokens, keys
from k1node.access.issuers import Issuer
from k1node.access.models import ApiKey
from k1node.lib.ids import prefixed

pytestmark = pytest.mark.django_db
BILLING = "https://billing.internal"
THEIR_KEY = "kq3VbT7mWz9XcR2nYp5sLd8fGh1jAe4u"
RSA_LOOKING = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n-----END PUBLIC KEY-----"
ODD: Any = object()  # left out


@dataclass(frozen=True)
class In:
    """So many seconds from the moment at which the token is made."""

    seconds: float


@pytest.fixture
def known() -> keys.Known:
    found = keys.verify(keys.issue("billing", ["scheduler:read"])[1])
    assert found
    return found


@pytest.fixture
def good(known: keys.Known) -> str:
    return grants.issue(known).access_token


def ring() -> tuple[str, str]:
    return next(iter(jwt_tokens._ring().items()))


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def resolved(claims: dict[str, Any]) -> dict[str, Any]:
    now = int(time.time())
    return {
        name: now + value.seconds if isinstance(value, In) else value
        for name, value in claims.items()
        if value is not ODD
    }


def signed(header: Any, payload: Any, secret: str, digest: Any = hashlib.sha256) -> str:
    """Return a token of any header and payload (given as values, or as bytes), with a true HMAC over them."""
    parts = [b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)]
    text = ".".join(parts)
    return f"{text}.{b64(hmac.new(secret.encode(), text.encode(), digest).digest())}"


def changed(token: str, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return our token with other claims and headers (ODD: without them), rightly signed with our own secret."""
    kid, secret = ring()
    head = {"alg": "HS256", "typ": "at+jwt", "kid": kid} | (header or {})
    body = claims_of(token) | claims
    return signed(
        {name: value for name, value in head.items() if value is not ODD},
        resolved(body),
        secret,
    )


def status(token: str) -> int:
    return Client().get("/api/v2/tasks", headers={"Authorization": f"Bearer {token}"}).status_code


def test_the_table_starts_from_a_good_token(good: str) -> None:
    assert status(good) == status(changed(good)) == 200
    assert jwt.get_unverified_header(good) == {"alg": "HS256", "typ": "at+jwt", "kid": ring()[0]}
    assert set(claims_of(good)) == {"iss", "aud", "sub", "jti", "sid", "iat", "nbf", "exp", "scope"}


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param({"alg": "none"}, {}, id="alg none, signed all the same"),
        pytest.param({"alg": "None"}, {}, id="alg None"),
        pytest.param({"alg": "HS512"}, {}, id="another HMAC"),
        pytest.param({"alg": "RS256"}, {}, id="another family"),
        pytest.param({"alg": ["HS256"]}, {}, id="a list of algorithms"),
        pytest.param({"alg": ODD}, {}, id="no alg"),
        pytest.param({"typ": "JWT"}, {}, id="the general type"),
        pytest.param({"typ": "refresh+jwt"}, {}, id="another type"),
        pytest.param({"typ": ["at+jwt"]}, {}, id="a list of types"),
        pytest.param({"typ": ODD}, {}, id="no type"),
        pytest.param({"crit": ["exp"]}, {}, id="a critical extension"),
        pytest.param({"crit": []}, {}, id="an empty crit"),
        pytest.param({"crit": ["b64"], "b64": True}, {}, id="b64"),
        pytest.param({"b64": False}, {}, id="a detached payload"),
        pytest.param({"kid": "0" * 16}, {}, id="an unknown kid"),
        pytest.param({"kid": "../../../dev/null"}, {}, id="a kid with a path"),
        pytest.param({"kid": "' OR 1=1 --"}, {}, id="a kid with SQL"),
        pytest.param({"kid": ["x"]}, {}, id="a list of kids"),
        pytest.param({"kid": None}, {}, id="a null kid"),
        pytest.param({"kid": ODD}, {}, id="no kid"),
        pytest.param({}, {"iss": "someone"}, id="another issuer"),
        pytest.param({}, {"iss": ["k1node"]}, id="a list of issuers"),
        pytest.param({}, {"iss": ODD}, id="no issuer"),
        pytest.param({}, {"aud": "other-api"}, id="another audience"),
        pytest.param({}, {"aud": ["k1node-api", "other"]}, id="several audiences"),
        pytest.param({}, {"aud": ODD}, id="no audience"),
        pytest.param({}, {"exp": In(-31)}, id="expired"),
        pytest.param({}, {"exp": ODD}, id="no end"),
        pytest.param({}, {"exp": None}, id="a null end"),
        pytest.param({}, {"exp": "never"}, id="an end in words"),
        pytest.param({}, {"exp": []}, id="an end that is a list"),
        pytest.param({}, {"nbf": In(3600)}, id="not yet valid"),
        pytest.param({}, {"nbf": ODD}, id="no nbf"),
        pytest.param({}, {"iat": In(3600)}, id="issued in the future"),
        pytest.param({}, {"iat": ODD}, id="no iat"),
        pytest.param({}, {"jti": ODD}, id="no jti"),
        pytest.param({}, {"jti": 7}, id="a jti that is a number"),
        pytest.param({}, {"sub": ODD}, id="no subject"),
        pytest.param({}, {"sub": 7}, id="a subject that is a number"),
        pytest.param({}, {"sub": "key:key-0000000000000000"}, id="an unknown key"),
        pytest.param({}, {"sub": "issuer:x:y"}, id="another kind of subject"),
        pytest.param({}, {"sid": ODD}, id="no family"),
        pytest.param({}, {"sid": "family-0000000000000000"}, id="an unknown family"),
        pytest.param({}, {"sid": {"a": 1}}, id="a family that is an object"),
        pytest.param({}, {"jti": "\ud800"}, id="half a character in the jti"),
        pytest.param({}, {"sub": "key:\ud800"}, id="half a character in the subject"),
        pytest.param({}, {"sid": "a\0b"}, id="a NUL in the family"),
        pytest.param({}, {"exp": 10**15}, id="an end beyond all calendars"),
    ],
)
def test_refused_though_the_signature_is_right(good: str, header: dict[str, Any], claims: dict[str, Any]) -> None:
    assert status(changed(good, header, **claims)) == 401


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param({"jku": "https://evil.example/keys"}, {}, id="jku"),
        pytest.param({"x5u": "https://evil.example/cert"}, {}, id="x5u"),
        pytest.param({"jwk": {"kty": "oct", "k": "AAAA"}}, {}, id="jwk"),
        pytest.param({"x5c": ["AAAA"]}, {}, id="x5c"),
        pytest.param({"typ": "application/AT+JWT"}, {}, id="the type at full length"),
        pytest.param({}, {"exp": In(-20)}, id="expired within the leeway"),
        pytest.param({}, {"admin": True, "scp": ["admin"]}, id="claims that mean nothing here"),
    ],
)
def test_what_changes_nothing(good: str, header: dict[str, Any], claims: dict[str, Any]) -> None:
    assert status(changed(good, header, **claims)) == 200


def forged() -> dict[str, Any]:
    """Return makers of tokens from a good one, none of whose signatures is right."""
    kid, secret = ring()
    head = {"alg": "HS256", "typ": "at+jwt", "kid": kid}

    def unsigned(good: str) -> str:
        return f"{b64(json.dumps(head | {'alg': 'none'}).encode())}.{good.split('.')[1]}."

    return {
        "no signature": lambda good: good.rsplit(".", 1)[0] + ".",
        "alg none": unsigned,
        "another secret": lambda good: signed(head, claims_of(good), "x" * 64),
        "an empty secret": lambda good: signed(head, claims_of(good), ""),
        "a public key as the secret": lambda good: signed(head, claims_of(good), RSA_LOOKING),
        "the key of another issuer": lambda good: signed(head, claims_of(good), THEIR_KEY),
        "the key of another issuer and its name": lambda good: signed(
            head, claims_of(good) | {"iss": BILLING}, THEIR_KEY
        ),
        "HMAC of another length": lambda good: signed(head, claims_of(good), secret, hashlib.sha512),
        "another payload": lambda good: ".".join(
            [good.split(".")[0], b64(json.dumps(claims_of(good) | {"scope": "admin"}).encode()), good.split(".")[2]]
        ),
        "a bit of the signature": lambda good: good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        "padding": lambda good: good + "=",
        "a deep header": lambda good: f"{b64(b'[' * 3000)}.e30.AA",
        "a deep payload": lambda good: signed(head, b"[" * 5000, secret),
        "a payload that is a list": lambda good: signed(head, [], secret),
        "a payload that is no JSON": lambda good: signed(head, b"\xff\xfe", secret),
        "a header that is a list": lambda good: signed(["HS256"], claims_of(good), secret),
        "an end beyond all numbers": lambda good: signed(
            head, json.dumps(claims_of(good) | {"exp": 0}).replace('"exp": 0', '"exp": 1e400').encode(), secret
        ),
        "not a number": lambda good: signed(
            head, json.dumps(claims_of(good) | {"exp": 0}).replace('"exp": 0', '"exp": NaN').encode(), secret
        ),
        "too long": lambda good: changed(good, filler="x" * 9000),
        "two dots and nothing": lambda good: "eyJ..",
        "three letters": lambda good: "eyJ",
        "four parts": lambda good: good + ".x",
        "encrypted": lambda good: good + ".x.y",
    }


@pytest.mark.parametrize("name", list(forged()))
def test_forged_and_broken_tokens_are_401(good: str, name: str, settings: Any) -> None:
    settings.K1NODE_JWT_ISSUERS = {BILLING: Issuer(BILLING, THEIR_KEY, ("admin",), "other-api")}

    assert status(forged()[name](good)) == 401


def test_a_scope_beyond_the_keys_gives_nothing(good: str) -> None:
    found, _ = jwt_tokens.examine(changed(good, scope="admin scheduler:write nonsense"))

    assert found and found.scopes == {"scheduler:read"}


@pytest.mark.parametrize("scope", [ODD, "", 7, ["scheduler:read"], None])
def test_without_a_scope_it_opens_nothing(good: str, scope: Any) -> None:
    assert status(changed(good, scope=scope)) == 403


def test_a_family_of_another_key_does_not_count(good: str) -> None:
    other = keys.verify(keys.issue("other", ["admin"])[1])
    assert other
    sid = claims_of(grants.issue(other).access_token)["sid"]

    assert status(changed(good, sid=sid)) == 401


def test_older_secrets_still_verify_and_do_not_sign(known: keys.Known, settings: Any) -> None:
    old = grants.issue(known).access_token
    settings.JWT_SECRET, settings.JWT_SECRET_PREVIOUS = "another-one-" + "0123456789abcdef" * 2, [settings.JWT_SECRET]
    new = grants.issue(known).access_token

    assert status(old) == status(new) == 200
    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]
    settings.JWT_SECRET_PREVIOUS = []
    assert (status(old), status(new)) == (401, 200)


def test_a_short_secret_signs_and_opens_nothing(good: str, settings: Any) -> None:
    settings.JWT_SECRET = "short"

    assert status(changed(good)) == 401


# --- other issuers ----------------------------------------------------------------------------------------------


@pytest.fixture
def billing(settings: Any) -> Issuer:
    issuer = Issuer(BILLING, THEIR_KEY, ("scheduler:read", "scheduler:trigger"), issuers.AUDIENCE)
    settings.K1NODE_JWT_ISSUERS = {BILLING: issuer}
    return issuer


def theirs(header: dict[str, Any] | None = None, **claims: Any) -> str:
    body = {
        "iss": BILLING,
        "aud": "k1node-api",
        "sub": "invoices",
        "iat": In(0),
        "exp": In(3600),
        "jti": "j-1",
        "scope": "scheduler:write",
    } | claims
    return signed(
        {"alg": "HS256", "typ": "JWT"} | (header or {}),
        resolved(body),
        THEIR_KEY,
    )


@pytest.mark.usefixtures("billing")
def test_a_token_of_a_known_issuer_opens_what_both_allow() -> None:
    found, reason = jwt_tokens.examine(theirs())

    assert found, reason
    assert (found.name, found.identity) == ("invoices (billing.internal)", f"issuer:{BILLING}:invoices")
    assert found.scopes == {"scheduler:read"}
    assert status(theirs()) == status(theirs(aud=["k1node-api", "other"])) == status(theirs(jti=ODD)) == 200
    assert status(theirs(scope=ODD)) == status(theirs(scope="admin-not")) == 403
    assert status(theirs({"typ": "at+jwt", "kid": "theirs"})) == 200


@pytest.mark.usefixtures("billing")
@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param({}, {"iss": "https://other.internal"}, id="an issuer nobody named"),
        pytest.param({}, {"iss": {"a": 1}}, id="an issuer that is an object"),
        pytest.param({}, {"aud": "other-api"}, id="another audience"),
        pytest.param({}, {"aud": ODD}, id="no audience"),
        pytest.param({}, {"exp": In(86_401)}, id="longer than a day"),
        pytest.param({}, {"exp": 1e18, "iat": 1e18 - 5}, id="issued in the far future"),
        pytest.param({}, {"iat": "1700000000"}, id="iat as text"),
        pytest.param({}, {"iat": True}, id="iat as a boolean"),
        pytest.param({}, {"iat": ODD}, id="no iat"),
        pytest.param({}, {"exp": ODD}, id="no end"),
        pytest.param({}, {"nbf": In(3600)}, id="not yet"),
        pytest.param({}, {"sub": ODD}, id="no subject"),
        pytest.param({}, {"sub": ""}, id="an empty subject"),
        pytest.param({}, {"sub": "a\nb"}, id="a subject of two lines"),
        pytest.param({}, {"sub": "x" * 101}, id="a long subject"),
        pytest.param({}, {"jti": "a\0b"}, id="a NUL in the jti"),
        pytest.param({}, {"jti": "x" * 201}, id="a long jti"),
        pytest.param({}, {"jti": 7}, id="a jti that is a number"),
        pytest.param({"alg": "none"}, {}, id="alg none"),
        pytest.param({"typ": "id+jwt"}, {}, id="another type"),
        pytest.param({"typ": ODD}, {}, id="no type at all"),
    ],
)
def test_what_is_refused_of_a_known_issuer(header: dict[str, Any], claims: dict[str, Any]) -> None:
    token = theirs({name: value for name, value in header.items() if value is not ODD}, **claims)
    if header.get("typ") is ODD:
        token = signed({"alg": "HS256"}, claims_of(theirs()), THEIR_KEY)

    assert status(token) == 401


@pytest.mark.usefixtures("billing")
def test_an_issuer_cannot_speak_for_a_key(known: keys.Known) -> None:
    found, _ = jwt_tokens.examine(theirs(sub=f"key:{known.public_id}"))

    assert found and found.identity == f"issuer:{BILLING}:key:{known.public_id}"
    assert found.key is None


@pytest.mark.usefixtures("billing")
def test_a_token_of_another_issuer_can_be_revoked(django_assert_num_queries: Any) -> None:
    grants.revoke(theirs())

    with django_assert_num_queries(1):
        assert "revoked token" in jwt_tokens.examine(theirs())[1]
    assert status(theirs(jti="j-2")) == status(theirs(jti=ODD)) == 200


@pytest.mark.usefixtures("billing")
def test_a_token_without_a_name_is_revoked_by_what_was_signed() -> None:
    token, other = theirs(jti=ODD), theirs(jti=ODD, sub="receipts")
    grants.revoke(token)

    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    forms = [token[:-1] + last for last in alphabet]  # four of them are the same signature
    assert {status(form) for form in forms} == {401}
    assert status(other) == 200


@pytest.mark.usefixtures("billing")
def test_a_jti_denied_for_one_issuer_is_not_denied_for_another(good: str) -> None:
    grants.revoke(theirs(jti=claims_of(good)["jti"]))

    assert status(good) == 200


def test_no_reason_is_told_and_no_token_logged(good: str, caplog: pytest.LogCaptureFixture) -> None:
    token = changed(good, aud="other-api")

    response = Client().get("/api/v2/tasks", headers={"Authorization": f"Bearer {token}"})

    assert response.json()["error"]["message"] == "The credential is not valid (any more)"
    assert response["WWW-Authenticate"] == 'Bearer realm="k1node", error="invalid_token"'
    records: list[Any] = [record for record in caplog.records if record.name == "k1node.access.authentication"]
    assert [record.reason for record in records] == ["token not valid: InvalidAudienceError"]
    assert token not in str([record.__dict__ for record in caplog.records])


def test_a_deleted_key_has_no_tokens(good: str) -> None:
    ApiKey.objects.update(public_id=prefixed("key"))

    assert status(good) == 401
