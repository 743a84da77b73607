"""The decisions that django-oauth-toolkit leaves to a project, and the gaps between its statements closed.

- A person who was closed or is no longer staff gets no tokens, also none for a code or a refresh token of before.
- Consent is cut to what the person may give, and a refresh to what was consented to.
- A code used twice ends what was issued for it (RFC 6749 4.1.2): its tokens' family is derived from the code.
- A refresh token used twice *at the same moment* is reuse as well; the toolkit alone would answer with an empty token.
"""

import hashlib
import logging
from typing import Any
from uuid import UUID

from django.db import transaction
from oauth2_provider.models import RefreshToken
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.oauth2.rfc6749 import errors
from oauthlib.oauth2.rfc6749.utils import scope_to_list

from k1node.access import operators
from k1node.access.scopes import covered

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
        return super()._create_authorization_code(request, code, expires)

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
        if presented is None:
            return super().save_bearer_token(token, request, *args, **kwargs)
        with transaction.atomic():
            # From here on no rival can use it; whoever was first has revoked it.
            if RefreshToken.objects.select_for_update().filter(pk=presented.pk, revoked__isnull=True).first():
                return super().save_bearer_token(token, request, *args, **kwargs)
        _end_family(presented.token_family, presented.application, "A refresh token was used twice at one moment")
        raise errors.InvalidGrantError(request=request)


def _end_family(family: UUID, application: Any, why: str) -> None:
    # Only of the application that asks: nobody else may end its tokens.
    if RefreshToken.objects.filter(token_family=family, application=application, revoked__isnull=True).exists():
        logger.warning("OAuth tokens revoked", extra={"reason": why, "application": str(application)})
        RefreshToken.revoke_family(family)
