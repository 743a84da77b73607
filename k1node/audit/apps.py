from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "k1node.audit"
    label = "audit"
