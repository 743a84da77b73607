"""The decisions that django-oauth-toolkit leaves to a project, and the gaps between its statements closed.

- A person who was closed or is no longer staff gets no tokens, also none for a code or a refresh token of before.
- Consent is cut to what the person may give, and a refresh to what was consented to.
- A code used twice ends what was issued for it (RFC 6749 4.1.2): its tokens' family is derived from the code.
- A refresh token used twice *at the same moment* is reuse as well; the toolkit alone would answer with an empty token.
- What is given and what ends is in the audit log, in the same transaction.
"""

import hashlib
import logging
from typing import Any
from uuid import UUID

from django.db import transaction
from oauth2_provider.models import AccessToken, RefreshToken
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.oauth2.rfc6749.utils import scope_to_list

from k1node.access import operators
from k1node.access.oauth.tokens import checksum, target_of
from k1node.access.scopes import covered
from k1node.audit import trail
from k1node.lib import origin

logger = logging.getLogger(__name__)


def grantable(user: Any, asked: list[str]) -> list[str]:
    """Return those of the scopes asked for that this person may give."""
    may = covered(operators.scopes_of(user))
    return [scope for scope in asked if scope in may]


def family_of(code: str) -> UUID:
    """Return the family of all tokens that come from this authorization code."""
    return UUID(bytes=hashlib.sha256(code.encode()).digest()[:16], version=4)


class Validator(OAuth2Validator):
    def _create_authorization_code(self, request: Any, code: dict[str, str], expires: Any = None) -> Any:
        request.scopes = grantable(request.user, request.scopes)
        if not request.scopes:
            raise errors.InvalidScopeError(request=request)
        with transaction.atomic():
            made = super()._create_authorization_code(request, code, expires)
            trail.record("consent.given", target_of(request.client), after={"scopes": request.scopes})
        return made

    def validate_code(self, client_id: str, code: str, client: Any, request: Any, *args: Any, **kwargs: Any) -> bool:
        if not super().validate_code(client_id, code, client, request, *args, **kwargs):
            _end_family(family_of(code), client, "An authorization code was used again or too late")
            return False
        return operators.may_sign_in(request.user)

    def invalidate_authorization_code(self, client_id: str, code: str, request: Any, *args: Any, **kwargs: Any) -> None:
        try:
            super().invalidate_authorization_code(client_id, code, request, *args, **kwargs)
        except errors.InvalidGrantError:
            _end_family(family_of(code), request.client, "An authorization code was used twice at one moment")
            raise

    def _create_refresh_token(
        self, request: Any, refresh_token_code: str, access_token: Any, previous_refresh_token: Any
    ) -> Any:
        made = super()._create_refresh_token(request, refresh_token_code, access_token, previous_refresh_token)
        if previous_refresh_token is None and request.grant_type == "authorization_code":
            made.token_family = family_of(request.code)
            RefreshToken.objects.filter(pk=made.pk).update(token_family=made.token_family)
        return made

    def validate_refresh_token(self, refresh_token: str, client: Any, request: Any, *args: Any, **kwargs: Any) -> bool:
        again = RefreshToken.objects.filter(
            token_checksum=checksum(refresh_token), application=client, revoked__isnull=False
        ).first()
        if again is not None:
            _end_family(again.token_family, client, "A refresh token came a second time")
        good = super().validate_refresh_token(refresh_token, client, request, *args, **kwargs)
        return good and operators.may_sign_in(request.user)

    def is_within_original_scope(
        self, request_scopes: list[str], refresh_token: str, request: Any, *args: Any, **kwargs: Any
    ) -> bool:
        """Called where more is asked for than was consented to: cut it once more, and say whether anything is left.

        Client libraries repeat at each refresh what they asked for at first.
        """
        consented = scope_to_list(self.get_original_scopes(refresh_token, request)) or []
        request.scopes = [scope for scope in request_scopes if scope in consented]
        return bool(request.scopes)

    def save_bearer_token(self, token: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        presented = getattr(request, "refresh_token_instance", None)
        with transaction.atomic():
            # From here on no rival can use it; whoever was first has revoked it.
            unused = RefreshToken.objects.select_for_update().filter(revoked__isnull=True)
            if presented is None or unused.filter(pk=presented.pk).first():
                made = super().save_bearer_token(token, request, *args, **kwargs)
                _record("grant.issued" if presented is None else "grant.refreshed", request)
                return made
        _end_family(presented.token_family, presented.application, "A refresh token was used twice at one moment")
        raise errors.InvalidGrantError(request=request)

    def revoke_token(self, token: str, token_type_hint: str, request: Any, *args: Any, **kwargs: Any) -> None:
        which = {"token_checksum": checksum(token), "application": request.client}
        with transaction.atomic():
            live = RefreshToken.objects.filter(revoked__isnull=True, **which).exists()
            live = live or AccessToken.objects.filter(**which).exists()
            super().revoke_token(token, token_type_hint, request, *args, **kwargs)
            if live:
                trail.record("grant.revoked", target_of(request.client), reason="by the app", by=str(request.client))


def _record(action: str, request: Any) -> None:
    """Write down that the app got tokens, in the name of the person who has allowed it."""
    asked_from = origin.current()
    if asked_from is not None:
        asked_from.actor = f"oauth:{request.client.pk}:{request.user.pk}"
        asked_from.actor_name = request.user.get_username()
    trail.record(action, target_of(request.client), after={"scopes": list(request.scopes)})


def _end_family(family: UUID, application: Any, why: str) -> None:
    # Only of the application that asks: nobody else may end its tokens.
    if RefreshToken.objects.filter(token_family=family, application=application, revoked__isnull=True).exists():
        logger.warning("OAuth tokens revoked", extra={"reason": why, "application": str(application)})
        with transaction.atomic():
            RefreshToken.revoke_family(family)
            trail.record("grant.revoked", target_of(application), reason=why, by=str(application))
