from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "k1node.access"
    label = "access"
