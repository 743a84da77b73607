"""The messages of signing in and of keys."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from k1node.access import addresses, keys
from k1node.access.models import ApiKey, KeyState
from k1node.api.serializers import (
    QuerySerializer,
    StrictChoice,
    StrictInteger,
    StrictList,
    StrictSerializer,
    StrictString,
    Timestamp,
)

LONGEST_TOKEN = 8192
LONGEST_REASON = 500


class TokenInput(StrictSerializer):
    scope = StrictString(
        required=False,
        max_length=1000,
        help_text="What the tokens are to allow, scopes with spaces between them; left out: all that the key may do",
    )


class RefreshInput(StrictSerializer):
    refresh_token = StrictString(max_length=LONGEST_TOKEN, help_text="The one of the answer before; good for one use")


class RevokeInput(StrictSerializer):
    token = StrictString(max_length=LONGEST_TOKEN, help_text="An access token, or a refresh token, whose family ends")


class TokenOutput(serializers.Serializer[Any]):
    access_token = serializers.CharField(help_text="A JWT, to be sent as `Authorization: Bearer …`")
    token_type = serializers.ChoiceField(["Bearer"])
    expires_in = serializers.IntegerField(help_text="Seconds that access_token is good for")
    refresh_token = serializers.CharField(help_text="Good for one call of auth/refresh")
    scope = serializers.CharField(help_text="What it allows, scopes with spaces between them")


class RevokeOutput(serializers.Serializer[Any]):
    revoked = serializers.BooleanField(help_text="True: whatever it was before, the token is not valid now")


class KeyFilters(QuerySerializer):
    state = StrictChoice(KeyState.choices, required=False, help_text="rotated: replaced, and valid until expires_at")
    name = StrictString(required=False, max_length=100, help_text="The whole name")


class _KeyFields(StrictSerializer):
    allowed_cidrs = StrictList(
        child=StrictString(max_length=50),
        required=False,
        max_length=addresses.MOST,
        help_text="Networks the key may be used from, 10.0.0.0/8; empty: from everywhere",
    )
    expires_at = Timestamp(required=False, allow_null=True, help_text="When it ends; null: it does not")
    requests_per_hour = StrictInteger(
        required=False,
        allow_null=True,
        min_value=keys.RATES[0],
        max_value=keys.RATES[1],
        help_text="null: the node's own limit",
    )


class ApiKeyInput(_KeyFields):
    name = StrictString(max_length=100, help_text="Whose key it is, as logs and histories will show it")
    scopes = StrictList(child=StrictString(max_length=60), max_length=100, help_text="What it may do")


class ApiKeyUpdate(_KeyFields):
    name = StrictString(max_length=100, required=False)
    scopes = StrictList(
        child=StrictString(max_length=60),
        max_length=100,
        required=False,
        help_text="All of its scopes from now on; they can only become fewer",
    )


class RotateInput(StrictSerializer):
    overlap_seconds = StrictInteger(
        required=False,
        min_value=0,
        max_value=int(keys.LONGEST_OVERLAP.total_seconds()),
        default=int(keys.OVERLAP.total_seconds()),
        help_text="How long the old key stays valid beside the new one; 0: it ends at once",
    )


class RevokeKeyInput(StrictSerializer):
    reason = StrictString(
        required=False, allow_blank=True, max_length=LONGEST_REASON, help_text="Why, for whoever wonders later"
    )


class ApiKeyOutput(serializers.Serializer[ApiKey]):
    """Never the key itself, nor what it is recognised by."""

    key_id = serializers.CharField(source="public_id")
    name = serializers.CharField()
    prefix = serializers.SerializerMethodField(help_text="What every key begins with")
    last_four = serializers.CharField(source="hint", help_text="Its last four characters")
    state = serializers.SerializerMethodField()
    scopes = serializers.ListField(child=serializers.CharField())
    allowed_cidrs = serializers.ListField(child=serializers.CharField(), help_text="Empty: from everywhere")
    requests_per_hour = serializers.IntegerField(allow_null=True, help_text="null: the node's own limit")
    created_at = Timestamp()
    created_by = serializers.CharField()
    last_used_at = Timestamp(allow_null=True, help_text="To the minute")
    last_used_ip = serializers.SerializerMethodField()
    expires_at = Timestamp(allow_null=True)
    revoked_at = Timestamp(allow_null=True)
    revoked_reason = serializers.CharField()
    replaced_by = serializers.SerializerMethodField(help_text="The key_id of the key that took its place")

    def get_prefix(self, row: ApiKey) -> str:
        return keys.PREFIX

    @extend_schema_field(serializers.ChoiceField(KeyState.choices))
    def get_state(self, row: ApiKey) -> str:
        return row.state(timezone.now())

    def get_last_used_ip(self, row: ApiKey) -> str | None:
        return row.last_used_ip or None

    def get_replaced_by(self, row: ApiKey) -> str | None:
        return row.replaced_by.public_id if row.replaced_by else None


class NewApiKeyOutput(ApiKeyOutput):
    """`key` is shown in this answer and never again."""

    key = serializers.SerializerMethodField(help_text="The key itself; it is stored nowhere")

    def get_key(self, row: ApiKey) -> str:
        return str(self.context["text"])
