from django.apps import AppConfig


class K1NodeConfig(AppConfig):
    name = "k1node"
    verbose_name = "K1.Node"
