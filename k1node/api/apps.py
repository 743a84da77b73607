from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "k1node.api"
    label = "api"
