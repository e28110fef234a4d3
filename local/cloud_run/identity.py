"""ID tokens as Google issues them, signed with a key of the stand-in's own."""

import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt
from google.auth.exceptions import GoogleAuthError

ISSUER = "https://accounts.google.com"
KEY_FILE = "identity_key.pem"
LIFETIME_SECONDS = 3600

_CLOCK_SKEW_SECONDS = 10
_KEPT_IDENTITIES = 1024


class InvalidToken(Exception):
    """A token that proves nothing; the message says why, without the token."""


@dataclass(frozen=True)
class Identity:
    """What a verified token says.

    Attributes:
        email: whom it was issued to.
        audience: for which callee.
        expires_at: seconds since the epoch.
    """

    email: str
    audience: str
    expires_at: int


class Issuer:
    """Issues and verifies ID tokens; its key is made once and kept.

    Args:
        folder: holds the key, readable for its owner only.

    Raises:
        OSError: the folder can't be written.
        ValueError: the key file holds no RSA key.
    """

    def __init__(self, folder: Path) -> None:
        key = _load_or_make_key(folder / KEY_FILE)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        key_id = hashlib.sha256(public).hexdigest()[:40]
        self._signer = crypt.RSASigner(key, key_id)
        self._certificates = {key_id: public}
        # By the token's hash: a caller sends the same token for an hour, and a
        # signature costs more to verify than a request to pass on.
        self._verified: OrderedDict[bytes, Identity] = OrderedDict()

    def issue(self, email: str, audience: str) -> str:
        """A token that proves to `audience` that its bearer is `email`."""
        now = int(time.time())
        number = subject(email)
        claims = {
            "aud": audience,
            "azp": number,
            "email": email,
            "email_verified": True,
            "exp": now + LIFETIME_SECONDS,
            "iat": now,
            "iss": ISSUER,
            "sub": number,
        }
        token: bytes = jwt.encode(self._signer, claims)
        return token.decode("ascii")

    def verify(self, token: str) -> Identity:
        """Whom the token names, and for which audience.

        Args:
            token: as sent, any characters.

        Raises:
            InvalidToken: not signed by this issuer with RS256, from another issuer,
                not valid now, or without a verified email.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        identity = self._verified.get(digest)
        if identity is None:
            identity = self._verify(token)
            self._verified[digest] = identity
            if len(self._verified) > _KEPT_IDENTITIES:
                self._verified.popitem(last=False)
        else:
            self._verified.move_to_end(digest)
        if time.time() > identity.expires_at + _CLOCK_SKEW_SECONDS:
            del self._verified[digest]
            raise InvalidToken("the token has expired")
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            # Said here rather than left to the library, which takes more than this one.
            if jwt.decode_header(token).get("alg") != "RS256":
                raise InvalidToken("the token is not signed with RS256")
            claims = jwt.decode(
                token, self._certificates, clock_skew_in_seconds=_CLOCK_SKEW_SECONDS
            )
        except (GoogleAuthError, ValueError, RecursionError) as error:
            raise InvalidToken(
                f"the token could not be verified ({type(error).__name__})"
            ) from None
        if claims.get("iss") != ISSUER:
            raise InvalidToken("the token is from another issuer")
        email, audience = claims.get("email"), claims.get("aud")
        if not isinstance(email, str) or claims.get("email_verified") is not True:
            raise InvalidToken("the token has no verified email")
        if not isinstance(audience, str):
            raise InvalidToken("the token has no audience")
        return Identity(email, audience, int(claims["exp"]))


def subject(email: str) -> str:
    """The account's unique number, as Google's: 21 digits, always the same."""
    digest = hashlib.sha256(email.lower().encode()).digest()
    return "1" + str(int.from_bytes(digest, "big"))[:20].zfill(20)


def _load_or_make_key(path: Path) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        return _make_key(path)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError(f"{path} holds no RSA key; delete it, and a new one is made")
    return key


def _make_key(path: Path) -> rsa.RSAPrivateKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # Renamed when whole: a stand-in that is killed here leaves no half a key.
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
    return key
