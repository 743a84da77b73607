from django.apps import AppConfig


class OperationsConfig(AppConfig):
    name = "k1node.operations"
    label = "operations"
