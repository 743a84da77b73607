"""Messages of the audit log's API."""

from typing import Any

from rest_framework import serializers

from k1node.api import serializers as strict
from k1node.api.serializers import Timestamp
from k1node.audit.models import AuditRecord


class AuditFilters(strict.QuerySerializer):
    action = strict.StrictString(required=False, max_length=60, help_text="schedule.updated, or schedule.* for all")
    actor = strict.StrictString(required=False, max_length=150, help_text="key:12, user:3, oauth:1:3, system")
    target = strict.StrictString(required=False, max_length=250, help_text="schedule:backup-daily")
    address = strict.StrictString(required=False, max_length=64, help_text="The client's address")
    since = Timestamp(required=False, help_text="Not before this moment")
    until = Timestamp(required=False, help_text="Before this moment")


class AuditRecordOutput(serializers.Serializer[AuditRecord]):
    record_id = serializers.CharField(source="pk")
    timestamp = Timestamp(source="at")
    action = serializers.CharField()
    actor = serializers.CharField(help_text="Who: key:12, user:3, oauth:1:3; system for the node itself")
    actor_name = serializers.CharField()
    address = serializers.CharField(help_text="Where from")
    request_id = serializers.CharField()
    target = serializers.CharField(help_text="What it was done to")
    before = serializers.SerializerMethodField()
    after = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    count = serializers.IntegerField(help_text="How many acts this one record stands for")
    last_at = Timestamp(allow_null=True, help_text="The last of them, if there are several")

    def get_before(self, row: AuditRecord) -> dict[str, Any] | None:
        return row.before

    def get_after(self, row: AuditRecord) -> dict[str, Any] | None:
        return row.after

    def get_reason(self, row: AuditRecord) -> str | None:
        return row.reason or None
